"""What clang's source coverage says, merged over all test programs. Called by tests/coverage.sh, which explains it.

    python3 tests/coverage.py PROFILE PROGRAM...

Prints every branch side and every MC/DC condition of the readers that no test decides, then a table of
percentages. Exit 1 when a goal is missed. A use of a macro counts by itself: JMB_TRY has a branch at each place.
"""
import json
import os
import re
import subprocess
import sys
from multiprocessing import Pool

# The code that reads what others wrote: file, text where it begins, text where it ends (None: the whole file).
READERS = [
    ("jamba.h", " * >>format - ", " * >>tokenizer - "),
    ("jamba.h", "typedef struct jmb_section {", " * >>chat - "),
    ("jamba.h", "static jamba_result jmb_chat_check(", "static jamba_result jmb_chat_encode("),
    ("jamba.h", " * >>model - ", " * >>adapter - "),
    ("jamba.h", " * >>adapter - ", " * >>session - "),
    ("jamba.h", " * >>state - ", " * >>sampler - "),
    ("tools/json.h", None, None),
    ("tools/safetensors.h", None, None),
    ("tools/sentencepiece.h", None, None),
    ("tools/tokenizer.h", None, None),
    ("tools/families.h", None, None),
    ("tools/lora.h", None, None),
    ("tools/pattern.h", None, None),
]

# What no test on this machine can bring about: file, the line's text, why it stays. The text must be there.
ELSEWHERE = [
    ("jamba.h", "if (!jmb_rounds_to_float())", "true on 32-bit x86 without SSE2 only"),
    ("jamba.h", "if (!units) return jmb_no_memory(s->error);",
     "jmb_measure_added() has made the room for every token; the compiler cannot know"),
    ("tools/tokenizer.h", "if (slot == JMB_NO_TOKEN) return tool_error_set(b->error, \"too many hash collisions",
     "takes 512 merges whose tokens have one hash; tests/shapes.c makes them for the library"),
    ("tools/tokenizer.h", "if (!tokenizer_keep_merge(b, merges, b->merge_count)) return false;", "the same"),
    ("tools/families.h", "if (!missing[0]) jmb_tensor_name(t, missing);",
     "every role of a family's blocks has a rule today; a family without one would say so here"),
]

# A call that reports and returns false, as the last of `a || b`, has no true side.
REPORTS = re.compile(r"(tool_error_set|tool_no_memory|\w+_fail\w*)\(")

READERS_GOAL = 100.0
HEADER_GOAL = 95.0


def lines_of(name):
    with open(name, encoding="utf-8") as file:
        return file.read().splitlines()


def find_line(name, text, start=0):
    for number, line in enumerate(lines_of(name)[start:], start + 1):
        if text in line:
            return number
    sys.exit(f"{name}: no line with {text!r}; tests/coverage.py names it")


def reader_ranges():
    ranges = []
    for name, begin, end in READERS:
        first = find_line(name, begin) if begin else 1
        last = find_line(name, end, first) if end else len(lines_of(name))
        label = f"{name} {begin.strip(' *>-/(')}" if begin else name
        ranges.append((name, first, last, label.replace("static jamba_result ", "")))
    return ranges


def excused_lines():
    excused = {}
    for name, text, why in ELSEWHERE:
        excused[name, find_line(name, text)] = why
    return excused


class Place:
    """Where each file id of a function is expanded: the outermost use and the columns on the way."""

    def __init__(self, function, names):
        self.names = [names(name) for name in function["filenames"]]
        self.parents = {r[6]: (r[5], r[0], r[1]) for r in function["regions"] if r[7] == 1}

    def outermost(self, file_id, line, column):
        """(file, line, columns...) of the use in the function's own text."""
        columns = [(line, column)]
        while file_id in self.parents:
            file_id, line, column = self.parents[file_id]
            columns.append((line, column))
        return self.names[file_id], line, tuple(reversed(columns))


def is_folded(branch, regions):
    """A constant condition has no counts although it is executed."""
    inside = [r for r in regions if r[5] == branch[6] and r[7] == 0 and (r[0], r[1]) <= (branch[0], branch[1])
              and (branch[2], branch[3]) <= (r[2], r[3])]
    return bool(inside) and max(inside, key=lambda r: (r[0], r[1]))[4] > 0


def text_at(name, line, column, cache={}):
    if name not in cache:
        cache[name] = lines_of(name) if os.path.exists(name) else []
    return cache[name][line - 1][column - 1:] if line <= len(cache[name]) else ""


def is_report(branch, place):
    """The condition, or the use of the macro that it stands in, is a call that only reports."""
    name, line, columns = place.outermost(branch[6], branch[0], branch[1])
    return bool(REPORTS.match(text_at(name, line, columns[0][1])))


def has_sides(branch, function, place):
    """Not a constant, and not a report."""
    if branch[4] == 0 and branch[5] == 0 and is_folded(branch, function["regions"]):
        return False
    return not is_report(branch, place)


def read_branches(function, place, branches):
    folded = set()
    for b in function["branches"]:
        name, line, columns = place.outermost(b[6], b[0], b[1])
        key = (name, line, columns, b[2], b[3])
        if not has_sides(b, function, place):
            if is_report(b, place):
                b = b[:4] + [1] + b[5:]  # its false side counts
            else:
                folded.add(key)
                continue
        old = branches.get(key, (0, 0))
        branches[key] = (max(old[0], b[4]), max(old[1], b[5]))
    return folded


def read_decisions(function, place, decisions):
    """The conditions of a decision are its branches in the order of the text."""
    for record in function["mcdc_records"]:
        key = (place.names[0], record[0], record[1], record[2], record[3])
        conditions = list(record[6])
        branches = {}
        for b in function["branches"]:
            _, line, columns = place.outermost(b[6], b[0], b[1])
            if b[8] == 6 and (record[0], record[1]) <= (line, columns[0][1]) < (record[2], record[3]):
                branches[line, columns[0][1]] = b
        if len(branches) == len(conditions):
            conditions = [c or not has_sides(branches[at], function, place)
                          for at, c in zip(sorted(branches), conditions)]
        old = decisions.get(key, [False] * len(conditions))
        decisions[key] = [a or b for a, b in zip(old, conditions)]


def read_lines(segments, counts):
    """llvm-cov's count of each line: the largest of what begins there, or of what goes on from above."""
    by_line, wrapped = {}, None
    for segment in segments:
        by_line.setdefault(segment[0], []).append(segment)
    for line in range(min(by_line), max(by_line) + 1) if by_line else []:
        here = by_line.get(line, [])
        begun = [s[2] for s in here if s[3] and s[4] and not s[5]]
        skipped = here and not here[0][3] and here[0][4]
        if not skipped and (begun or (wrapped and wrapped[3])):
            count = max(begun + ([wrapped[2]] if wrapped and wrapped[3] and not begun else []))
            counts[line] = max(counts.get(line, 0), count)
        if here:
            wrapped = here[-1]


def shorten(path):
    return os.path.relpath(os.path.normpath(path))


def read_program(arguments):
    profile, program = arguments
    tool = os.environ.get("LLVM_COV", "llvm-cov-19")
    text = subprocess.run([tool, "export", program, "-instr-profile", profile], check=True, capture_output=True).stdout
    data = json.loads(text)["data"][0]
    wanted = {name for name, *_ in READERS}
    branches, decisions, lines, functions, folded = {}, {}, {}, {}, set()
    for function in data["functions"]:
        place = Place(function, shorten)
        if place.names[0] not in wanted:
            continue
        folded |= read_branches(function, place, branches)
        read_decisions(function, place, decisions)
        at = (place.names[0], function["regions"][0][0], function["name"].split(":")[-1])
        functions[at] = max(functions.get(at, 0), function["count"])
    for file in data["files"]:
        if shorten(file["filename"]) in wanted:
            read_lines(file["segments"], lines.setdefault(shorten(file["filename"]), {}))
    return branches, decisions, lines, functions, folded


def merge(results):
    branches, decisions, lines, functions, folded = {}, {}, {}, {}, set()
    for some_branches, some_decisions, some_lines, some_functions, some_folded in results:
        folded |= some_folded
        for key, (yes, no) in some_branches.items():
            old = branches.get(key, (0, 0))
            branches[key] = (max(old[0], yes), max(old[1], no))
        for key, conditions in some_decisions.items():
            old = decisions.get(key, [False] * len(conditions))
            decisions[key] = [a or b for a, b in zip(old, conditions)]
        for name, counts in some_lines.items():
            mine = lines.setdefault(name, {})
            for line, count in counts.items():
                mine[line] = max(mine.get(line, 0), count)
        for key, count in some_functions.items():
            functions[key] = max(functions.get(key, 0), count)
    for key in folded:
        branches.pop(key, None)
    return branches, decisions, lines, functions


def percent(part, whole):
    return 100.0 * part / whole if whole else 100.0


def describe_branch(key, counts, text):
    (line, column), inner = key[2][0], key[2][1:]
    side = "never true" if counts[0] == 0 else "never false"
    side = "never evaluated" if counts == (0, 0) else side
    return f"{key[0]}:{line}:{column}: {side}{' (in the macro)' if inner else ''}: {text[line - 1].strip()[:110]}"


def report_range(found, name, first, last, excused):
    """Lists what is missing between two lines; [sides, all sides, conditions, all conditions, lines, all lines]."""
    branches, decisions, lines, _ = found
    text, sums, missing = lines_of(name), [0] * 6, []
    for key, counts in branches.items():
        if key[0] != name or not first <= key[1] <= last or (name, key[1]) in excused:
            continue
        sums[0] += (counts[0] > 0) + (counts[1] > 0)
        sums[1] += 2
        if 0 in counts:
            missing.append((key[1], describe_branch(key, counts, text)))
    for key, conditions in decisions.items():
        if key[0] != name or not first <= key[1] <= last or (name, key[1]) in excused:
            continue
        sums[2] += sum(conditions)
        sums[3] += len(conditions)
        if not all(conditions):
            which = " ".join(str(i + 1) for i, ok in enumerate(conditions) if not ok)
            missing.append((key[1], f"{name}:{key[1]}:{key[2]}: MC/DC lacks condition {which} of {len(conditions)}: "
                            f"{text[key[1] - 1].strip()[:100]}"))
    counted = [count for line, count in lines.get(name, {}).items() if first <= line <= last]
    sums[4:] = [sum(count > 0 for count in counted), len(counted)]
    return sums, [line for _, line in sorted(missing)]


def row(label, sums):
    cells = "".join(f"{percent(a, b):8.2f} % {a:6d} /{b:6d}" for a, b in (sums[0:2], sums[2:4], sums[4:6]))
    print(f"{label[:46]:46}{cells}")


def never_called(functions):
    """Functions of jamba.h that no test calls, in no instruction set."""
    counts = {}
    for (name, line, function), count in functions.items():
        if name == "jamba.h":
            base = re.sub(r"_(scalar|sse2|avx2|avxvnni|avx512|neon|dotprod|wasm)$", "", function)
            counts[base] = max(counts.get(base, 0), count)
    return sorted(name for name, count in counts.items() if count == 0)


def main():
    profile, programs = sys.argv[1], sys.argv[2:]
    with Pool(int(os.environ.get("JOBS", os.cpu_count()))) as pool:
        found = merge(pool.imap_unordered(read_program, [(profile, program) for program in programs]))
    excused, total, rows = excused_lines(), [0] * 6, []
    for name, first, last, label in reader_ranges():
        sums, missing = report_range(found, name, first, last, excused)
        print("\n".join(missing)) if missing else None
        total = [a + b for a, b in zip(total, sums)]
        rows.append((label, sums))
    header, missing = report_range(found, "jamba.h", 1, len(lines_of("jamba.h")), {})
    if os.environ.get("ALL"):
        print("\n".join(["", "the whole header:"] + missing))
    print(f"\nnever called in jamba.h: {' '.join(never_called(found[3])) or 'none'}")
    print(f"\n{'':46}{'branch sides':>26}{'MC/DC conditions':>26}{'lines':>26}")
    for label, sums in rows:
        row(label, sums)
    row("readers together", total)
    row("jamba.h, all of it", header)
    for (name, line), why in sorted(excused.items()):
        print(f"left out: {name}:{line}: {why}")
    goals = percent(*total[0:2]) >= READERS_GOAL and percent(*total[2:4]) >= READERS_GOAL \
        and percent(*header[0:2]) >= HEADER_GOAL and percent(*header[4:6]) >= HEADER_GOAL
    print(f"goals (readers {READERS_GOAL:g} % of branches and MC/DC, jamba.h {HEADER_GOAL:g} % of branches and lines): "
          f"{'reached' if goals else 'missed'}")
    sys.exit(0 if goals else 1)


if __name__ == "__main__":
    main()
