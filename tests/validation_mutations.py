"""Mistakes made on purpose in the code that checks what a file says: the tests must notice each of them.

    python3 tests/validation_mutations.py [BUILD] [--count N] [--seed N] [--only NUMBER]

The code is what tests/coverage.py calls the readers. A mistake turns a comparison round or shifts it by one,
swaps && and ||, changes a constant by one, or drops a check. All of them are compiled into one copy of the source,
each behind its number (`MUTANT_IS(7) ? wrong : right`), so that a test program is compiled once; the environment
variable MUTANT chooses one. First every test runs by itself without a mistake and tells which ones it comes by;
then each mistake is made while those tests run that come by it, the quickest first, until one fails. What survives is
tried again with AddressSanitizer.

Prints what survived, and last: killed, of how many, per cent. Exit 1 below 95 per cent.
"""
import argparse
import os
import queue
import random
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from coverage import reader_ranges  # noqa: E402

TESTS = ["malformed", "conditions", "damage", "unit_text", "adapters", "state", "convert_damage", "lora_convert",
         "faults", "families", "reader_faults", "versions", "talk", "programs", "golden",
         "export", "models"]
TOOLS = ["convert", "export"]
GOAL = 95.0
FLAGS = ["-std=c99", "-D_POSIX_C_SOURCE=200809L", "-D_DEFAULT_SOURCE", "-D_FILE_OFFSET_BITS=64", "-O1", "-w",
         "-DJMB_UNROLLED="]
WATCHED = "/watched"  # programs with AddressSanitizer, in a folder of this name
ASAN_OPTIONS = "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4000"
JOBS = int(os.environ.get("JOBS", os.cpu_count()))

# Mistakes that change nothing anyone can observe: file, the line's text, the mistake, why.
EQUIVALENT = [
    ("jamba.h", "return rule->kind == JMB_RULE_SPACE ? 1 : rule->kind == JMB_RULE_DECODE ? 2 : 0;", "2 becomes 3",
     "only the order counts"),
    ("tools/families.h", "int64_t integer = 0;", "0 becomes 1", "set before it is read"),
    ("tools/lora.h", "i < sizeof keys / sizeof keys[0]; i++)", "0 becomes 1", "the size of any element"),
    ("jamba.h", "size_t part = io->size - at < (1u << 26) ?", "1u becomes 2u", "how often progress is told"),
    ("tools/tokenizer.h", "size_t at, size = 0;", "0 becomes 1", "set before it is read"),
    ("tools/json.h", "    s->key_length = 0;", "0 becomes 1", "without a key nobody reads its length"),
    ("tools/sentencepiece.h", "    field->value = 0;", "0 becomes 1", "set before it is read"),
    ("tools/pattern.h", "!= (i < w->length && pattern_is_word(w->text[i]));", "< becomes <=",
     "a text ends with a zero"),
    ("tools/json.h", "if (c >= 0xd800 && c < 0xdc00) {", "0xdc00 becomes 56321", "0xdc00 was refused above"),
    ("tools/lora.h", "return length > size && strcmp(name + length - size, end) == 0;", "> becomes >=",
     "every name begins with base_model.model."),
    ("tools/families.h", "plan->sources = (tensor_source(*)[2])calloc(", "2 becomes 1", "a cast of a pointer"),
    ("tools/families.h", "plan->sources = (tensor_source(*)[2])calloc(", "2 becomes 3", "a cast of a pointer"),
    ("tools/tokenizer.h", "double rate = 0;", "0 becomes 1", "set before it is read"),
    ("tools/tokenizer.h", "return c == 0x143 ? 0xad : -1;", "1 becomes 2", "only whether it is negative counts"),
    ("tools/safetensors.h", "return x->bytes == y->bytes ? 0 :", "1 becomes 2", "only the sign of a comparison counts"),
    ("tools/tokenizer.h", "|| length + 2 >= sizeof word", "2 becomes 3", "no key that is known is so long"),
    ("tools/safetensors.h", "return x->bytes == y->bytes ? 0 :", "0 becomes 1", "two that are equal, in any order"),
    ("tools/families.h", "if (!(off <= largest_off)) largest_off = off;", "<= becomes <", "the larger of two"),
    ("tools/tokenizer.h", "if (count > 0) qsort(scored, count,", "> becomes >=", "nothing to sort"),
    ("tools/json.h", "uint8_t c = s->p + i < s->end ? s->p[i] : 0;", "0 becomes 1", "neither is a hexadecimal digit"),
    ("tools/json.h", "uint32_t c = 0, low = 0;", "0 becomes 1", "set before it is read"),
    ("tools/tokenizer.h", "int shown = size < 60 ? (int)size : 60;", "< becomes <=", "60 both ways"),
    ("jamba.h", "if (bytes && count > 0) memcpy(", "> becomes >=", "a copy of no bytes"),
    ("tools/pattern.h", "bool lower = name >= 'a';", ">= becomes >", "the names are d, w, s and their capitals"),
    ("tools/sentencepiece.h", "return pieces->size > 0 ||", "0 becomes 1", "sizes are multiples of a piece's"),
    ("tools/json.h", "    v->length = 1;", "1 becomes 2", "true is what is not 0"),
    ("tools/families.h", "calloc(dim / 2 + 1u, sizeof *plan->rope);", "1u becomes 0u", "one more than is used"),
    ("tools/families.h", "uint32_t count = rank > state ? rank : state;", "> becomes >=", "the larger of two"),
    ("tools/families.h", "float off = copy[i] < base[i] ?", "< becomes <=", "the difference of equals is 0 both ways"),
    ("tools/families.h", "b->scale = b->head_dim ?", "0 becomes 1", "heads of size 0 are refused later"),
    ("tools/safetensors.h", "return x->bytes == y->bytes ? 0 :", "1 becomes 0",
     "qsort asks whether a comparison is above 0"),
    ("jamba.h", "size_t part = io->size - at < (1u << 26) ?", "26 becomes 27", "how often progress is told"),
    ("jamba.h", "JMB_TRY(jmb_check_zero(a->data, at + 28, at + 32, error));", "28 becomes 27",
     "the highest byte of a rank, which is at most 1024"),
    ("jamba.h", "for (i = JMB_SAVED_ADAPTERS; i < JMB_SAVED_ADAPTERS + 16 * JAMBA_ADAPTERS_MAX; i += 16)",
     "< becomes <=", "reserved bytes follow, which must be zero too"),
    ("jamba.h", "return form == JAMBA_EXACT || jmb_kv_bytes(type) > jmb_kv_bytes(own) ? own : type;", "> becomes >=",
     "types of one size are one type"),
    ("tools/json.h", "size_t count = 1;", "1 becomes 2", "more room than is used"),
    ("tools/families.h", "double value = 0;", "0 becomes 1", "set before it is read"),
    ("tools/safetensors.h", "if (shard->file < 0 || fstat(shard->file, &info) != 0)", "|| becomes &&",
     "fstat of what is not open fails too"),
    ("tools/tokenizer.h", "return x->merge.left < y->merge.left ? -1 :", "< becomes <=", "no merge comes twice"),
    ("tools/json.h", "else if (quoted) p += *p == '\\\\' && p + 1 < end;", "< becomes <=", "the loop ends both ways"),
    ("tools/families.h", "for (i = 0; i < dim / 2; i++) {", "< becomes <=", "there is room for one more than is used"),
    ("tools/families.h", "for (i = 0; i < count; i++) plan->ones[i] = 1;", "< becomes <=",
     "there is room for one more than is used"),
    ("jamba.h", "for (i = 0; i < h->unknown; i++) s->tokens[i] = -1;", "< becomes <=",
     "what stands there is written right after it"),
    ("tools/safetensors.h", "return tool_error_set(error, \"%s: there is %s before tensor %s: the file is damaged\"",
     "< becomes <=", "equal ones do not come here"),
    ("tools/tokenizer.h", "if (snprintf(word, sizeof word, \" %s \", key) != (int)length + 2 ||", "2 becomes 1",
     "a word of 63 letters is none of those known"),
    ("tools/safetensors.h", "return x->bytes == y->bytes ? 0 :", "< becomes <=", "equal ones do not come here"),
    ("tools/tokenizer.h", "both have id %lld", "60 becomes 59", "how much of a token the message shows"),
    ("jamba.h", "if (!units) return jmb_no_memory(s->error);", "the check dropped",
     "jmb_measure_added() has made the room for every token"),
    ("jamba.h", "for (i = 0; i < op->parts; at += op->out[i++].stride", "< becomes <=", "what is no part has no width"),
    ("tools/json.h", "else if (quoted) p += *p == '\\\\' && p + 1 < end;", "1 becomes 2", "the loop ends both ways"),
    ("tools/safetensors.h", "for (i = 0; i + PACK_BLOCK <= cols; i += PACK_BLOCK)", "<= becomes <",
     "what is left is packed too"),
    ("tools/families.h", "if (layer > 42) return layer == 47", "42 becomes 43", "43 is no multiple of 6"),
    ("tools/tokenizer.h", "result = jmb_tokenizer_load(&b->index, &b->heap, section->data,", "0 becomes 1",
     "a place that no message of the converter shows"),
    ("jamba.h", "return type > jmb_roles[role].lowest ? jmb_roles[role].lowest : type;", "> becomes >=",
     "the smaller of two"),
    ("jamba.h", "if (text_size == 0) return true;", "the check dropped", "an empty trie finds as little as none"),
    ("tools/families.h", "if (!missing[0]) jmb_tensor_name(t, missing);", "0 becomes 1",
     "every name has two letters"),
    ("jamba.h", "if (offsets[i + 1] < offsets[i] || offsets[i + 1] - offsets[i] > JMB_MAX_TOKEN)", "1 becomes 0",
     "a fall is a large unsigned number"),
    ("tools/json.h", "s->out += 9;", "9 becomes 10", "there is room for it"),
    ("jamba.h", "if (order < 0) low = middle + 1;", "< becomes <=", "equal ones do not come here"),
    ("jamba.h", "if (s->reply.stream.held_count < 0 ||", "0 becomes 1", "no byte is held either way"),
    ("tools/pattern.h", "for (i = 0; i < w->length && !w->failed; i++) {", "< becomes <=",
     "a place behind the text, where nothing looks"),
    ("tools/lora.h", "calloc((size_t)jmb_pad64(count) + 1, sizeof **values);", "1 becomes 0", "room for a count of 0"),
    ("tools/json.h", "else if (quoted) p += *p == '\\\\' && p + 1 < end;", "1 becomes 0", "the loop ends both ways"),
    ("tools/tokenizer.h", "(c >= 0xae && c <= 0xff)) return (int)c;", "0xff becomes 256",
     "256 as a byte is 0, as it should be"),
    ("tools/safetensors.h", "size_t middle = low + (high - low) / 2;", "2 becomes 3", "any place between finds it"),
    ("jamba.h", "size_t part = io->size - at < (1u << 26) ?", "26 becomes 25", "how often progress is told"),
    ("jamba.h", "count = position - key < 16 ? position - key : 16;", "< becomes <=", "the smaller of two"),
    ("jamba.h", "|| h->turns > h->position + h->pending + 1)", "> becomes >=", "no turn is without a token"),
]

# Lines on which a mistake changes nothing: how they look, the mistake, why.
EQUIVALENT_KINDS = [
    (r"return .*\? -1 :", r"1 becomes 2", "only the sign of a comparison counts"),
    (r"if \((\S+) != (\S+)\) return \1 < \2 \? -1 : 1;", r"< becomes <=", "they differ"),
]
ALLOCATION = re.compile(r"\b(malloc|calloc|realloc|jmb_heap_take\w*)\(")


def takes_more(source, what):
    """Whether the mistake is a larger number in a call that allocates."""
    old, new = (re.match(r"0x[0-9a-fA-F]+|\d+", part) for part in what.split(" becomes "))
    call = ALLOCATION.search(source)
    return bool(old and new and call and int(new.group(), 0) > int(old.group(), 0)
                and not re.search(rf"(?<![\w.]){old.group()}(?!\w)", source[:call.start()]))


CHOICE = """
#include <stdio.h>
#include <stdlib.h>
static int mutant_chosen;
static unsigned char mutant_met[%d];
#define MUTANT_IS(n) (mutant_met[n] = 1, mutant_chosen == (n))
__attribute__((constructor)) static void mutant_choose(void)
{
    const char *text = getenv("MUTANT");
    mutant_chosen = text ? atoi(text) : 0;
}
__attribute__((destructor)) static void mutant_tell(void)
{
    const char *path = getenv("MUTANTS_MET");
    FILE *file = path ? fopen(path, "ab") : NULL;
    unsigned i;
    for (i = 0; file && i < sizeof mutant_met; i++) if (mutant_met[i]) fprintf(file, "%%u\\n", i);
    if (file) fclose(file);
}
"""

INERT = re.compile(
    r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|^[ \t]*#(?:[^\n\\]|\\.|\\\n)*', re.S | re.M)
TOKEN = re.compile(r"<<=?|>>=?|->|<=|>=|==|!=|&&|\|\||<|>|(?<![\w.])(?:0x[0-9a-fA-F]+|\d+)[uUlL]*(?![\w.])")
SWAPS = {"<": ["<=", ">="], "<=": ["<", ">"], ">": [">=", "<="], ">=": [">", "<"], "==": ["!="], "!=": ["=="],
         "&&": ["||"], "||": ["&&"]}
SITE = re.compile(r"\b(if|while|for|JMB_TRY|JMB_TRY_HASH)\s*\(|\breturn\b|(?<![=!<>])=(?!=)")


def blank(match):
    return re.sub(r"[^\n]", " ", match.group())


def close_of(mask, at):
    """The place behind the bracket that closes the one at `at`."""
    depth = 0
    while True:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(mask[at], 0)
        at += 1
        if depth == 0:
            return at


def end_of(mask, at, stops):
    """The next of `stops`, or closing bracket, that is in no bracket of its own."""
    while mask[at] not in stops and mask[at] not in ")]}":
        at = close_of(mask, at) if mask[at] in "([{" else at + 1
    return at


def bodies(mask, first, last):
    """Function bodies: from a brace on a line of its own to one in the first column."""
    for match in re.finditer(r"^\{$.*?^\}$", mask, re.S | re.M):
        if first <= mask.count("\n", 0, match.start()) + 1 <= last:
            yield match.start(), match.end()


def expressions(mask, begin, end):
    """(start, end, what) of each expression that a choice may stand for."""
    for match in SITE.finditer(mask, begin, end):
        word, at = match.group(1), match.end()
        if word == "for":
            at = end_of(mask, at, ";") + 1
            yield at, end_of(mask, at, ";"), "while"
        elif word:
            yield at, close_of(mask, at - 1) - 1, word
        elif match.group() == "return":
            yield at, end_of(mask, at, ";"), "return"
        else:
            line = mask[mask.rfind("\n", 0, at) + 1:at]
            rest = mask[at:end_of(mask, at, ",;")]
            if not re.search(r"\b(static|for|enum)\b|\[\d*\w*\]\s*=$", line) and not rest.lstrip().startswith("{"):
                yield at, at + len(rest), "="


def shifted(number):
    digits = re.match(r"0x[0-9a-fA-F]+|\d+", number).group()
    value, suffix = int(digits, 0) if digits.startswith("0x") else int(digits), number[len(digits):]
    return [f"{v}{suffix}" for v in (value + 1, value - 1) if v >= 0]


def variants(text, mask, start, end, what):
    """(description, text) of each mistake in one expression."""
    body = text[start:end]
    if re.match(r"\s*(jmb_fail|jmb_bad_\w+|tool_fail\w*|json_fail|\w+_fail\w*)\(", body) or not body.strip():
        return
    if what.startswith("JMB_TRY"):
        yield "the check dropped", f"(({body}), JAMBA_OK)"
    if what == "if" and re.match(r"\)\s*(\{\s*)?return\b", mask[end:end + 200]):
        yield "the check dropped", "0"
    for match in TOKEN.finditer(mask, start, end):
        old = match.group()
        for new in SWAPS.get(old, shifted(old) if old[0].isdigit() else []):
            yield f"{old} becomes {new}", text[start:match.start()] + new + text[match.end():end]


class Mutant:
    def __init__(self, name, line, source, what, start, end, text):
        self.name, self.line, self.source, self.what = name, line, source, what
        self.start, self.end, self.text = start, end, text
        self.number = 0

    def __str__(self):
        return f"{self.name}:{self.line}: {self.what}: {self.source.strip()[:100]}"

    def crosses(self, other):
        return (self.name == other.name and (self.start, self.end) != (other.start, other.end)
                and self.start < other.end and other.start < self.end)

    def excuse(self):
        for name, source, what, why in EQUIVALENT:
            if name == self.name and source in self.source and what == self.what:
                return why
        if " becomes " in self.what and takes_more(self.source, self.what):
            return "more room than is used"
        return next((why for line, what, why in EQUIVALENT_KINDS
                     if re.search(line, self.source) and re.fullmatch(what, self.what)), None)


def find_mutants():
    found, texts = [], {}
    for name, first, last, _ in reader_ranges():
        with open(name, encoding="utf-8") as file:
            text = texts[name] = file.read()
        mask, lines = INERT.sub(blank, text), text.splitlines()
        for begin, finish in bodies(mask, first, last):
            for start, end, what in expressions(mask, begin, finish):
                for description, changed in variants(text, mask, start, end, what):
                    line = mask.count("\n", 0, start + len(mask[start:end]) - len(mask[start:end].lstrip())) + 1
                    found.append(Mutant(name, line, lines[line - 1], description, start, end, changed))
    return found, texts


def choose(found, count):
    """The first of them that have no excuse and do not lie one inside the other."""
    chosen = []
    for mutant in found:
        if len(chosen) < count and not mutant.excuse() and not any(mutant.crosses(other) for other in chosen):
            chosen.append(mutant)
    return chosen


def write_source(folder, chosen, texts):
    """The source with every chosen mistake behind its number."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder + "/source/tests")
    for part in ("tools", "examples"):
        shutil.copytree(part, f"{folder}/source/{part}")
    for file in os.listdir("tests"):
        if file.endswith((".c", ".h")):
            shutil.copy(f"tests/{file}", f"{folder}/source/tests/")
    with open(f"{folder}/choice.h", "w", encoding="utf-8") as file:
        file.write(CHOICE % (len(chosen) + 1))
    for name, text in texts.items():
        spans = {}
        for mutant in chosen:
            if mutant.name == name:
                spans.setdefault((mutant.start, mutant.end), []).append(mutant)
        for (start, end), mutants in sorted(spans.items(), reverse=True):
            choice = f"({text[start:end]})"
            for mutant in mutants:
                choice = f"(MUTANT_IS({mutant.number}) ? ({mutant.text}) : {choice})"
            text = f"{text[:start]} {choice}{text[end:]}"
        with open(f"{folder}/source/{name}", "w", encoding="utf-8") as file:
            file.write(text)


def compile_one(source_folder, source, out, more=()):
    command = [os.environ.get("CC", "gcc"), *FLAGS, "-include", f"{source_folder}/choice.h",
               f"-I{source_folder}/source", "-o", out, f"{source_folder}/source/{source}", *more, "-lm", "-pthread"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr[:3000]}")


def compile_all(source_folder, folder, flags=()):
    """The programs, in `folder`."""
    os.makedirs(folder + "/tests")
    library = f"{folder}/api_second.o"
    compile_one(source_folder, "tests/api_second.c", library, ["-c", *flags])
    jobs = [(f"tools/{tool}.c", f"{folder}/{tool}", flags) for tool in TOOLS]
    for test in [t for t in TESTS if os.path.exists(f"tests/{t}.c")]:
        with open(f"tests/{test}.c", encoding="utf-8") as file:
            api = "define SUPPORT_API_ONLY" in file.read()
        jobs.append((f"tests/{test}.c", f"{folder}/tests/{test}", [library, *flags] if api else flags))
    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(lambda job: compile_one(source_folder, *job), jobs))
    return [out for _, out, _ in jobs if "/tests/" in out]


def run_test(program, name, mutant, seconds, met=None):
    """Whether the test passed; its output does not matter."""
    environment = dict(os.environ, MUTANT=str(mutant), LAWS="20", CHATS="20", MODELS="60", ASAN_OPTIONS=ASAN_OPTIONS)
    if met:
        environment["MUTANTS_MET"] = met
    limit = "" if WATCHED in program else "ulimit -v 8000000;"
    command = f"{limit} exec '{program}' --filter \"$NAME\""
    try:
        return subprocess.run(["sh", "-c", command], env=dict(environment, NAME=name), timeout=seconds,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def list_tests(program):
    text = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout
    prefix = os.path.basename(program) + ": "
    return sorted({line[len(prefix):] for line in text.splitlines() if line.startswith(prefix)})


def learn(folder, program):
    """(seconds, program, name, numbers of the mistakes it comes by) of each test of one program."""
    tests = []
    for name in list_tests(program):
        met = f"{folder}/{os.path.basename(program)}.met"
        open(met, "w").close()
        begun = time.monotonic()
        if not run_test(program, name, 0, 600, met):
            print(f"left out, it fails without a mistake: {program} --filter '{name}'")
            continue
        with open(met, encoding="utf-8") as file:
            tests.append((time.monotonic() - begun, program, name, {int(line) for line in file}))
    return tests


def make_room(folder):
    """A folder for each thread, with links to the programs: tests write into the folder of their own program."""
    free = queue.Queue()
    for thread in range(JOBS):
        room = f"{folder}/{thread}"
        os.makedirs(room + "/tests")
        for part in ("", "/tests"):
            for file in os.scandir(folder + part):
                if file.is_file() and os.access(file, os.X_OK):
                    os.link(file.path, f"{room}{part}/{file.name}")
        free.put(room)
    return free


def kill(tests, free, mutant, slower=1):
    """Whether a test fails."""
    near, room, by = [test for test in tests if mutant.number in test[3]], free.get(), None
    for seconds, program, name, _ in near:
        if not run_test(f"{room}/tests/{os.path.basename(program)}", name, mutant.number, (20 + 10 * seconds) * slower):
            by = name
            break
    free.put(room)
    if by is None:
        print(f"survived {mutant.number}{'' if near else ' (no test comes by it)'}: {mutant}", flush=True)
    return by is not None


def kill_watched(source_folder, tests, survivors, pool):
    """How many of those whose tests pass fail under AddressSanitizer, as in CI: they read what is not theirs."""
    folder = source_folder + WATCHED
    near = [test for test in tests if any(mutant.number in test[3] for mutant in survivors)]
    if not near:
        return 0
    compile_all(source_folder, folder, ["-fsanitize=address"])
    whole = pool.map(lambda test: run_test(f"{folder}/tests/{os.path.basename(test[1])}", test[2], 0, 600), near)
    near = [test for test, passed in zip(near, whole) if passed]
    free = make_room(folder)
    print(f"{len(survivors)} again with AddressSanitizer", flush=True)
    return sum(pool.map(lambda mutant: kill(near, free, mutant, 5), survivors))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", nargs="?", default="build")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int)
    arguments = parser.parse_args()
    folder = os.path.join(arguments.build, "mutations-validation")
    begun = time.monotonic()
    found, texts = find_mutants()
    print(f"{len(found)} mistakes can be made")
    random.Random(arguments.seed).shuffle(found)
    chosen = choose(found, arguments.count)
    for number, mutant in enumerate(chosen, 1):
        mutant.number = number
    write_source(folder, chosen, texts)
    programs = compile_all(folder, folder)
    print(f"compiled after {time.monotonic() - begun:.0f} s", flush=True)
    with ThreadPoolExecutor(JOBS) as pool:
        tests = sorted(sum(pool.map(lambda program: learn(folder, program), programs), []), key=lambda test: test[0])
        print(f"{len(tests)} tests, learnt after {time.monotonic() - begun:.0f} s", flush=True)
        tried = [m for m in chosen if arguments.only in (None, m.number)]
        free = make_room(folder)
        survivors = [m for m, killed in zip(tried, pool.map(lambda m: kill(tests, free, m), tried)) if not killed]
        killed = len(tried) - len(survivors) + kill_watched(folder, tests, survivors, pool)
    rate = 100.0 * killed / len(tried)
    print(f"{killed} of {len(tried)} killed: {rate:.1f} per cent; {time.monotonic() - begun:.0f} s")
    sys.exit(0 if rate >= GOAL else 1)


if __name__ == "__main__":
    main()
