#!/bin/bash
# stack.sh - how much stack the public calls of jamba.h take, and that nothing recurses
#
#     tests/stack.sh [BUILD]       compiles with gcc at -O0 to -O3, and for aarch64, and tools; results in BUILD/stack
#     tests/stack.sh GRAPH.ci...   measures builds that are there (made with gcc -fcallgraph-info=su)
#
# From gcc's call graph: the deepest chain of frames from each public call, at most 32 KiB; a function that may call
# itself, a frame without a bound and a call through a pointer that the table below does not know are failures. The
# callbacks of the caller and libc count as nothing: what an executor takes comes on top. Tools and examples must not
# recurse either, but for those calls whose depth they count.
# Last line: N passed, N failed[, N skipped].
cd "$(dirname "$0")/.." || exit 1
passed=0 failed=0 skipped=0

# Calls through pointers: a piece of the calling line, and what it calls, of whatever instruction set ("-": a callback
# of the caller alone; "=": the operations in the table of kernels). Public calls are those of the header.
measure='
BEGIN {
    counted = "^pattern_" # of tokenizer.json: PATTERN_DEPTH groups in each other
    pointers["allocator.alloc("] = pointers["allocator->alloc("] = "jmb_default_alloc"
    pointers["allocator.free("] = pointers["allocator->free("] = "jmb_default_free"
    pointers["io->read("] = "jmb_file_read"
    pointers["check(user"] = "jmb_adapter_head jmb_saved_head"
    pointers["uses(&"] = "jmb_uses_a jmb_uses_e"
    pointers["now_us("] = "jmb_clock_us"
    pointers["executor.run("] = "jmb_slice_task jmb_gang_task jmb_openmp_run"
    pointers["task(ctx"] = "jmb_slice_task jmb_gang_task"
    pointers["kernels->run["] = "="
    pointers["kernels->exp("] = "jmb_run_exp"
    pointers["kernels->code("] = "jmb_code_head"
    pointers["progress("] = pointers["on_logits("] = pointers["filter("] = "-"
}
FILENAME == "jamba.h" {
    line[FNR] = $0
    if (/^static const jmb_kernels JMB_K/) table = 1
    if (table) {
        rest = $0
        while (match(rest, /jmb_run_[a-z0-9_]+/)) {
            kernel[substr(rest, RSTART, RLENGTH)] = 1
            rest = substr(rest, RSTART + RLENGTH)
        }
        if (/};$/) table = 0
    }
    next
}
# node: { title: "FILE:NAME" label: "NAME\nFILE:LINE:COLUMN\nN bytes (static)" }
/^node:/ {
    split($0, quoted, "\"")
    split(quoted[4], part, "\\\\n")
    name = quoted[2]
    known[name] = 1
    if (part[3] ~ /bytes/) {
        frame[name] = part[3] + 0
        if (part[3] ~ /\(dynamic\)/) complain(name ": a frame without a bound")
    }
    plain[name] = bare(name)
    named[plain[name]] = named[plain[name]] " " name
    if (sub(/_(scalar|avx2|avxvnni|avx512|neon|dotprod|i8mm)$/, "", plain[name]))
        named[plain[name]] = named[plain[name]] " " name
}
/^edge:/ {
    split($0, quoted, "\"")
    if (quoted[4] == "__indirect_call") indirect[++indirects] = quoted[2] " " quoted[6]
    else if (!((quoted[2], quoted[4]) in edge)) connect(quoted[2], quoted[4])
}
function bare(name) { # without file and clone
    sub(/^[^:]*:/, "", name)
    sub(/\..*/, "", name)
    return name
}
function complain(what) { if (++bad <= 10) print "  " what }
function connect(from, to) {
    edge[from, to] = 1
    calls[from] = calls[from] " " to
}
function connect_all(from, names,    i, n, list) {
    n = split(names, list, " ")
    for (i = 1; i <= n; i++) connect(from, list[i])
}
# What a call through a pointer, at FILE:LINE:COLUMN, can reach.
function resolve(from, at,    place, text, piece, list, n, i, name, found) {
    split(at, place, ":")
    text = line[place[2]]
    for (piece in pointers) {
        if (!index(text, piece)) continue
        found = 1
        n = split(pointers[piece], list, " ")
        for (i = 1; i <= n; i++) connect_all(from, named[list[i]])
        for (name in kernel)
            if (pointers[piece] == "=" && name != "jmb_run_exp") connect_all(from, named[name])
    }
    if (!found) complain(at ": a call through a pointer that tests/stack.sh does not know: " text)
}
# Bytes of the deepest chain from here on; deeper[name]: its next function.
function depth(name,    i, n, list, below, most) {
    if (name in total) return total[name]
    if (name in open) {
        if (!tool || plain[name] !~ counted) complain(name " may call itself")
        return 0
    }
    open[name] = 1
    n = split(calls[name], list, " ")
    for (i = 1; i <= n; i++) {
        below = depth(list[i])
        if (below <= most) continue
        most = below
        deeper[name] = list[i]
    }
    delete open[name]
    return total[name] = frame[name] + most
}
END {
    if (tool) {
        for (name in frame) depth(name)
        exit bad > 0
    }
    for (i = 1; i <= indirects; i++) {
        split(indirect[i], pair, " ")
        resolve(pair[1], pair[2])
    }
    for (name in frame) {
        if (plain[name] !~ /^jamba_/) continue
        publics++
        if (depth(name) <= most) continue
        most = total[name]
        deepest = name
    }
    for (name in frame) # what nobody calls must be unused: else it is called through a pointer
        if (!(name in total) && plain[name] !~ /^jmb_(v|vi|vb)_/) complain(name ": reached by no call known here")
    if (publics < 50) complain("only " publics + 0 " public calls in the graph")
    if (most > limit) complain(deepest " takes " most " bytes of stack, more than " limit)
    for (name = deepest; name != ""; name = deeper[name]) chain = chain " " bare(name) ":" frame[name]
    printf "%d bytes from %d public calls; the deepest:%s\n", most, publics, chain
    exit bad > 0
}'

# no_recursion TOOL.c
no_recursion() {
    local name=$(basename "$1" .c) text
    if gcc -std=c99 -D_POSIX_C_SOURCE=200809L -D_DEFAULT_SOURCE -D_FILE_OFFSET_BITS=64 -DJAMBA_NO_SIMD -I. \
        -fcallgraph-info=su -c -o "$build/stack/$name.o" "$1" &&
        text=$(awk -v tool=1 "$measure" jamba.h "$build/stack/$name.ci"); then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL stack: $1"
        echo "$text"
    fi
}

# graph NAME FILE
graph() {
    local text
    if text=$(awk -v limit=32768 "$measure" jamba.h "$2"); then
        passed=$((passed + 1))
        echo "stack: $1: $(tail -n 1 <<<"$text" | cut -c 1-110)"
    else
        failed=$((failed + 1))
        echo "FAIL stack: $1"
        echo "$text"
    fi
}

# compile NAME COMPILER FLAGS...
compile() {
    local out=$build/stack/$1
    if "${@:2}" -std=c99 -D_POSIX_C_SOURCE=200809L -fcallgraph-info=su -I. -c -o "$out.o" \
        tests/compile/implementation.c; then
        graph "$1" "$out.ci"
    else
        failed=$((failed + 1))
    fi
}

if [ "${1%.ci}" != "$1" ]; then
    for file; do graph "$(basename "$file" .ci)" "$file"; done
else
    build=${1:-build}
    mkdir -p "$build/stack" || exit 1
    for level in 0 1 2 3; do compile "x86-64-O$level" gcc -O$level; done
    for file in tools/*.c examples/*.c; do no_recursion "$file"; done
    if command -v aarch64-linux-gnu-gcc >/dev/null; then
        for level in 0 2; do compile "aarch64-O$level" aarch64-linux-gnu-gcc -O$level; done
    else
        echo "SKIP stack: no aarch64-linux-gnu-gcc here"
        skipped=1
    fi
fi
if [ "$skipped" -ne 0 ]; then echo "$passed passed, $failed failed, $skipped skipped"
else echo "$passed passed, $failed failed"; fi
[ "$failed" -eq 0 ]
