#!/bin/bash
# static.sh - what analysers, strict compilers and memory checkers say of jamba.h, the tools and the examples
#
#     tests/static.sh [BUILD] [ROW...]     BUILD: default build; results in BUILD/static
#
# Rows: `quick` is warnings, cppcheck, tidy and analyzer; `all` is those and tidy-deep, analyzer-deep, msan, ubsan
# and valgrind; the default is quick. Races are ThreadSanitizer's (.ci/run): helgrind knows no atomics. A finding is
# either mended or stands in tests/static/explained.txt with its reason; one whose line is gone fails too. Appends one
# line per row to the file that LEDGER names.
# Last line: N passed, N failed[, N skipped].
cd "$(dirname "$0")/.." || exit 1
export LC_ALL=C
build=${1:-build}
shift
out=$build/static
mkdir -p "$out" || exit 1
jobs=$(nproc 2>/dev/null || echo 2)
quick_rows="explained warnings cppcheck tidy analyzer"
deep_rows="tidy-deep analyzer-deep msan ubsan valgrind"
passed=0 failed=0 skipped=0
defines="-D_POSIX_C_SOURCE=200809L -D_DEFAULT_SOURCE -D_FILE_OFFSET_BITS=64"
explained=tests/static/explained.txt
programs=$(ls tools/*.c examples/*.c)

# The header as users of it see it: bodies of more than LINES lines are left out, so that a tool is analysed and not the
# library each time again.
declare_header() { # LINES DIRECTORY
    mkdir -p "$2" && awk -v lines="$1" '!/^{$/ { print; next }
    {
        body = ""
        for (n = 0; (getline line) > 0 && line !~ /^}/; n++) body = body line "\n"
        if (n > lines) gsub(/[^\n]+/, "", body)
        print (n > lines ? ";" : $0)
        printf "%s", body
        if (n > lines) sub(/^}/, "", line)
        print line
    }' jamba.h >"$2/jamba.h"
}
declare_header 0 "$out/declared"
declare_header 8 "$out/short" # a checker that follows calls knows what short functions do

# Whether the programs are there; else the row is skipped.
have() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null && continue
        echo "SKIP static: no $program here"
        skipped=$((skipped + 1))
        return 1
    done
}

# Runs each line of the input, side by side, all output into one log; a line that fails is a finding.
each() { # LOG
    xargs -P "$jobs" -d '\n' -I{} sh -c '{} || echo "static.sh:1: error: status $?"' >"$1" 2>&1
}

# Findings "file:line:... [check]" of a log, one a line, less those that are explained.
findings() { # LOG
    sed -E -n "s#^(\./|$PWD/)##; /^[^ :]+:[0-9]+:.*(error: |(warning|style|performance|portability): .*\\]$)/p" "$1" |
        sed -E "s#^$out/(declared|short)/##" | sort -u | awk -F'\t' '
        FNR == NR { if (!/^#/ && NF == 4) reason[$1 "\t" $2 "\t" $3] = 1; next }
        {
            split($0, at, ":")
            file = at[1]; check = $0
            sub(/.*\[/, "", check); sub(/\].*/, "", check)
            while ((getline text <file) > 0) if (++n == at[2]) source = text
            close(file); n = 0
            gsub(/^ +| +$/, "", source)
            if (!((file "\t" check "\t" source) in reason)) print
        }' "$explained" -
}

# Counts a row by what is left of its log.
finish() { # ROW LOG
    (set -o pipefail; findings "$2") >"$out/findings" 2>&1 || echo "static.sh: its own filter failed" >>"$out/findings"
    verdict "$1" "$([ -s "$out/findings" ] && echo 1 || echo 0)" "$out/findings"
}

verdict() { # NAME STATUS LOG
    if [ "$2" -eq 0 ]; then
        passed=$((passed + 1))
        echo "ok   static: $1 ($((SECONDS - row_began)) s)"
    else
        failed=$((failed + 1))
        echo "FAIL static: $1"
        head -n 40 "$3"
    fi
    [ -z "$LEDGER" ] || printf '%s\t%s\t%s\tstatic: %s\t%s\t%s\t%s\n' "$(date +%F)" "$(git rev-parse --short HEAD)" \
        "$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)" "$1" "${cases:-1}" "$((SECONDS - row_began))" \
        "$([ "$2" -eq 0 ] && echo "0 findings" || echo "$(wc -l <"$3") findings")" >>"$LEDGER"
}

# ---- strict warnings -----------------------------------------------------------------------
# Off in clang's -Weverything: padded, unsafe-buffer-usage (this is C); used-but-marked-unused (a header's helpers are);
# float-equal (meant: comparisons here are of exact numbers); switch-enum (what a default covers is meant);
# bad-function-cast (a cast of a result is a conversion); disabled-macro-expansion (libc's macros);
# conditional-uninitialized (does not follow flags; MSan and valgrind do). Tests besides: cast-qual (execv takes
# pointers to char), missing-prototypes (a tool's main under another name), reserved names (glibc's own, behind faults).
# C++ besides: what makes C++ of C.
row_warnings() {
    local off="-Wno-padded -Wno-unsafe-buffer-usage -Wno-used-but-marked-unused -Wno-float-equal -Wno-switch-enum
        -Wno-bad-function-cast -Wno-disabled-macro-expansion -Wno-conditional-uninitialized"
    local gcc="-Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wcast-align=strict -Wcast-qual -Wundef
        -Wvla -Walloca -Wdouble-promotion -Wformat=2 -Wnull-dereference -Wlogical-op -Wduplicated-cond"
    local of_c="-Wno-old-style-cast -Wno-c++98-compat-pedantic -Wno-zero-as-null-pointer-constant"
    local of_tests="-Wno-cast-qual -Wno-missing-prototypes -Wno-reserved-identifier -Wno-reserved-macro-identifier"
    local c="-Wstrict-prototypes -Wmissing-prototypes" header=tests/compile/implementation.c std file
    have gcc g++ clang-16 clang++-16 || return
    off=$(echo $off) gcc=$(echo $gcc)
    {
        for std in c99 c11 c17 gnu11; do
            echo "gcc -std=$std -fsyntax-only $gcc $c -I. $header"
            echo "clang-16 -std=$std -fsyntax-only -Weverything $off -I. $header"
        done
        for std in c++11 c++17 c++20; do
            echo "g++ -x c++ -std=$std -fsyntax-only $gcc -I. $header"
            echo "clang++-16 -x c++ -std=$std -fsyntax-only -Weverything $off $of_c -I. $header"
        done
        # what needs the optimiser
        echo "gcc -std=c99 -O1 -DJMB_UNROLLED= -DJAMBA_NO_SIMD $gcc $c -I. -c -o $out/warnings.o $header"
        for file in $programs; do
            echo "clang-16 -std=c99 $defines -fsyntax-only -Weverything $off -I. $file"
            echo "gcc -std=c99 $defines -fsyntax-only $gcc $c -I. $file"
        done
        for file in tests/*.c; do
            echo "clang-16 -std=c99 $defines -fsyntax-only -Weverything $off $of_tests -I. $file"
        done
    } >"$out/warnings.txt"
    cases=$(wc -l <"$out/warnings.txt")
    each "$out/warnings.log" <"$out/warnings.txt"
    finish "strict warnings" "$out/warnings.log"
}

# ---- cppcheck ------------------------------------------------------------------------------
# Not asked for: variableScope (declarations stand at the top of a function, C99 as C89 had it), constParameter (a
# parameter's type says what a caller may pass); duplicateCondition (`if (ok) step; if (ok) next;` is how the tools go
# on); knownConditionTrueFalse (cppcheck 2.10 takes `a < B ? a : B` for a number below 1); missingIncludeSystem.
row_cppcheck() {
    local options="--enable=warning,performance,portability,style --std=c99 --force --max-configs=2 -q
        --suppress=variableScope --suppress=constParameter --suppress=constVariable --suppress=duplicateCondition
        --suppress=knownConditionTrueFalse --suppress=missingIncludeSystem
        --suppress=unusedStructMember --suppress=unmatchedSuppression
        --template='{file}:{line}:{column}: {severity}: {message} [{id}]'
        -D__x86_64__ -D__GNUC__=12 -D__linux__ -DJAMBA_NO_SIMD"
    have cppcheck || return
    options=$(echo $options)
    {
        echo "cppcheck $options -I. tests/compile/implementation.c"
        for file in $programs; do echo "cppcheck $options -I$out/declared -I. -Itools $file"; done
    } >"$out/cppcheck.txt"
    cases=$(wc -l <"$out/cppcheck.txt")
    each "$out/cppcheck.log" <"$out/cppcheck.txt"
    finish "cppcheck" "$out/cppcheck.log"
}

# ---- clang-tidy ----------------------------------------------------------------------------
tidy() { # ROW CHECKS
    local file options="--quiet --config-file=tests/static/clang-tidy.yaml --header-filter='/(tools|examples)/'"
    local flags="-std=c99 -I$out/short -I. -Itools $defines -DJAMBA_NO_SIMD -Xclang -analyzer-opt-analyze-headers"
    {
        echo "jamba.h $2 -- -x c -std=c99 -I. -DJAMBA_IMPLEMENTATION -DJAMBA_NO_SIMD"
        for file in $programs; do # each is one thread
            echo "$file $2,-concurrency-mt-unsafe -- $flags"
        done
    } | sed "s#^\([^ ]*\) \([^ ]*\) --#clang-tidy-19 $options --checks=\2 \1 --#" >"$out/$1.txt"
    cases=$(wc -l <"$out/$1.txt")
    each "$out/$1.log" <"$out/$1.txt"
    finish "$1" "$out/$1.log"
}
row_tidy() {
    have clang-tidy-19 && tidy clang-tidy "-clang-analyzer-*"
}
row_tidy-deep() {
    have clang-tidy-19 && tidy clang-analyzer "-bugprone-*,-cert-*"
}

# ---- gcc's analyser ------------------------------------------------------------------------
analyzer() { # ROW FILE...
    local row=$1
    shift
    cases=$#
    printf "gcc -std=c99 $defines -DJAMBA_NO_SIMD -fanalyzer -I$out/declared -I. -Itools -c -o /dev/null %s\n" "$@" |
        each "$out/$row.log"
    finish "$row" "$out/$row.log"
}
row_analyzer() {
    have gcc && analyzer "gcc-analyzer-small" tools/tokenize.c tools/logits.c examples/minimal.c
}
row_analyzer-deep() {
    have gcc || return
    analyzer "gcc-analyzer" $programs
    cases=1
    echo "gcc -std=c99 -DJAMBA_NO_SIMD -fanalyzer -I. -c -o /dev/null tests/compile/implementation.c" |
        each "$out/header.log"
    finish "gcc-analyzer-header" "$out/header.log"
}

# ---- run under a checker -------------------------------------------------------------------
# Builds what the list names into BUILD/NAME, then runs each line of it; a report, or a failed test, is a failure.
checked() { # NAME CC FLAGS WRAPPER LIST: lines of a program and its arguments, FOLDER for BUILD/NAME
    local name=$1 folder=$build/$1 log=$out/$1.log line programs
    printf '%s\n' "$5" | sed "s#^#$folder/#; s#FOLDER#$folder#g" >"$out/$name.txt"
    cases=$(wc -l <"$out/$name.txt")
    programs=$(sed 's/ .*//' "$out/$name.txt" | sort -u)
    MAKEFLAGS=-j$jobs make BUILD="$folder" CC="$2" LDFLAGS="$3" \
        CFLAGS="-O1 -g -fno-omit-frame-pointer -DJMB_UNROLLED= $3" "$folder/convert" $programs >"$log" 2>&1 || {
        verdict "$name" 1 "$log"
        return
    }
    while read -r line; do
        timeout 3600 $4 $line </dev/null >"$log" 2>&1 && continue
        echo "$line"
        grep -vE '^(golden|talk|state|adapters): ' "$log" | head -n 30
    done <"$out/$name.txt" >"$log.bad"
    verdict "$name" "$([ -s "$log.bad" ] && echo 1 || echo 0)" "$log.bad"
}

tools_list="convert examples/storyteller FOLDER/storyteller.jamba --force
inspect FOLDER/storyteller.jamba --tensors --verify
chat FOLDER/storyteller.jamba -p Once -n 20
tokenize FOLDER/storyteller.jamba"
tests_list="tests/golden
tests/unit_text
tests/unit_kernels
tests/damage
tests/state
tests/adapters
tests/fork
tests/talk"

row_msan() {
    have clang-16 || return
    checked msan clang-16 "-fsanitize=memory -fsanitize-memory-track-origins -fno-sanitize-recover=all" "" \
        "$tools_list
$tests_list"
}

row_ubsan() {
    local groups=implicit-conversion,unsigned-integer-overflow,local-bounds,nullability
    local flags="-fsanitize=$groups -fno-sanitize-recover=all -fsanitize-ignorelist=tests/static/ubsan.txt"
    have clang-16 || return
    checked ubsan clang-16 "$flags" "" "$tools_list
$tests_list"
}

# valgrind 3.19 has no AVX-512: the library sees that by itself and takes AVX2.
row_valgrind() {
    local kinds=definite,indirect,possible # what a test still points to at its end is no leak
    local options="-q --error-exitcode=99 --leak-check=full --show-leak-kinds=$kinds --errors-for-leak-kinds=$kinds
        --suppressions=tests/static/valgrind.supp"
    have valgrind gcc || return
    checked valgrind gcc "" "valgrind $options" "$tools_list
tests/golden --filter jamba
tests/golden --filter zamba2
tests/golden --filter mamba2
tests/unit_text --filter refused
tests/unit_text --filter library
tests/adapters --filter jamba-moe
tests/fork --filter cost
tests/fork --filter below
tests/fork --filter refusals
tests/talk --filter reply
tests/talk --filter choices
tests/damage --filter header
tests/state --filter refused
tests/state --filter mamba"
}

# Explanations of lines that are no more.
row_explained() {
    grep -v '^#' "$explained" | while IFS=$'\t' read -r file check line _; do
        grep -qF -- "$line" "$file" || echo "$explained: no such line in $file any more ($check): $line"
    done >"$out/explained.log"
    verdict "explanations" "$([ -s "$out/explained.log" ] && echo 1 || echo 0)" "$out/explained.log"
}

for row in ${*:-quick}; do
    case $row in quick) rows+=" $quick_rows" ;; all) rows+=" $quick_rows $deep_rows" ;; *) rows+=" $row" ;; esac
done
for row in $rows; do
    row_began=$SECONDS cases=1
    "row_$row"
done
echo
if [ "$skipped" -ne 0 ]; then echo "$passed passed, $failed failed, $skipped skipped"
else echo "$passed passed, $failed failed"; fi
[ "$failed" -eq 0 ]
