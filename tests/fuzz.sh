#!/bin/bash
# fuzz.sh - fuzz targets of tests/fuzz with clang's libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer
#
#     tests/fuzz.sh [BUILD] build    [TARGET...]   compile them
#     tests/fuzz.sh [BUILD] replay   [TARGET...]   run the committed inputs, and every input that once crashed
#     tests/fuzz.sh [BUILD] short    [TARGET...]   replay, then fuzz each target for SECONDS_EACH (15) seconds
#     tests/fuzz.sh [BUILD] campaign [TARGET...]   EXECUTIONS (5000000) of each; goes on where it was stopped, in
#                                                  pieces of ten minutes, and writes each into tests/ledger.tsv
#     tests/fuzz.sh [BUILD] plants   [PLANT...]    bugs planted in a copy: each must be found within ten minutes
#     tests/fuzz.sh [BUILD] seeds                  write the first inputs into BUILD/fuzz/seeds
#     tests/fuzz.sh [BUILD] minimise [TARGET...]   merge seeds, committed inputs and what campaigns found into
#                                                  tests/fuzz/corpus
#
# Needs clang with its runtime libraries (CLANG, default clang-16). JOBS (default: processors) run at a time. Prints
# N passed, N failed.
cd "$(dirname "$0")/.." || exit 1
. tests/mutant.sh
modes=" build replay short campaign plants seeds minimise "
build=build
case $modes in *" ${2:-none} "*) build=$1; shift ;; esac
mode=${1:-}
shift
case $modes in *" $mode "*) ;; *) sed -n 's/^#     //p' "$0" >&2; exit 2 ;; esac
clang=${CLANG:-clang-16}
jobs=${JOBS:-$(nproc 2>/dev/null || echo 2)}
out=$build/fuzz
corpus=tests/fuzz/corpus
passed=0 failed=0
mkdir -p "$out"

# name, source, library or "-", longest input, dictionary or "-", a further flag
targets="
model           model           unsafe  20000 binary
model_mended    model           shipped 20000 binary      -DFUZZ_MENDS
state           state           unsafe   6000 binary
state_mended    state           shipped  6000 binary      -DFUZZ_MENDS
adapter         adapter         unsafe   6000 binary
adapter_mended  adapter         shipped  6000 binary      -DFUZZ_MENDS
api             api             shipped   600 -
chat            chat            shipped   400 text
text            text            shipped  1000 text
json            json            -        2000 json
safetensors     safetensors     -        4000 safetensors
config          config          -       10000 config
tokenizer_json  tokenizer_json  -        8000 tokenizer
tokenizer_model tokenizer_model -        6000 tokenizer
hfdir           hfdir           -       30000 config      -fno-sanitize-coverage=trace-cmp
"
names=$(awk 'NF { print $1 }' <<<"$targets")
if [ "$mode" != plants ] && [ $# -gt 0 ]; then names=$*; fi

# One column of a target's line.
column() {
    awk -v name="$1" -v at="$2" '$1 == name { print $at }' <<<"$targets"
}

# ---- building ---------------------------------------------------------------------------------------------

language="-std=c99 -D_POSIX_C_SOURCE=200809L -D_DEFAULT_SOURCE -D_FILE_OFFSET_BITS=64"
warnings="-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror"
sanitize="-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -gline-tables-only"
# Small pages of keys and values, so that a few tokens fill some.
ignored=-fsanitize-coverage-ignorelist=tests/fuzz/untraced.ignore
library="-DJAMBA_IMPLEMENTATION -DJMB_PAGE=16 -DJMB_UNROLLED= -fsanitize=fuzzer-no-link $ignored"

# The library: `unsafe` does not check hashes, `shipped` does. Their sources are in $1, the objects go to $2.
build_library() {
    local root=$1 to=$2 kind=$3 flags=""
    [ "$kind" = unsafe ] && flags=-DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
    $clang $language $sanitize $library $flags -O1 -w ${PLAIN:+-DJAMBA_NO_SIMD} -I"$root" -x c -c \
        -o "$to/$kind.o" "$root/jamba.h"
}

# What makes models and mends hashes is no target.
build_models() {
    $clang $language $warnings -DJAMBA_NO_SIMD -O1 -I"$1" -c -o "$2/models.o" "$1/tests/fuzz/models.c"
}

build_target() {
    local root=$1 to=$2 name=$3 kind flags
    kind=$(column "$name" 3)
    flags=$(column "$name" 6)
    if [ "$kind" = - ]; then
        $clang $language $warnings $sanitize -fsanitize=fuzzer $ignored -DJAMBA_NO_SIMD -DJMB_UNROLLED= -O2 $flags \
            -I"$root" \
            -o "$to/$name" "$root/tests/fuzz/$(column "$name" 2).c" -lm
    else
        $clang $language $warnings $sanitize -fsanitize=fuzzer -O2 $flags -I"$root" -o "$to/$name" \
            "$root/tests/fuzz/$(column "$name" 2).c" "$to/models.o" "$to/$kind.o" -lm
    fi
}

# Whether a file is older than any of its sources, or than the others given.
stale() {
    local file=$1 sources="jamba.h tools tests/fuzz"
    shift
    case $file in */unsafe.o | */shipped.o) sources=jamba.h ;; esac
    [ ! -e "$file" ] || [ -n "$(find $sources "$@" -maxdepth 1 -name '*.[cho]' -newer "$file" -print -quit)" ]
}

# Runs the commands in the lines of standard input, $jobs at a time; each writes its own report. True when all are.
parallel() {
    xargs -r -P "$jobs" -I LINE bash -c LINE
}
export -f build_library build_models build_target column
export clang language warnings sanitize library ignored targets

build_all() {
    local name kind need=""
    for name in $names; do
        kind=$(column "$name" 3)
        [ -n "$kind" ] || { echo "no such target: $name"; exit 2; }
        [ "$kind" = - ] || need="$need $kind models"
    done
    for kind in $(tr ' ' '\n' <<<"$need" | sort -ru); do
        stale "$out/$kind.o" || continue
        if [ "$kind" = models ]; then echo "build_models . $out"; else echo "build_library . $out $kind"; fi
    done | parallel || return 1
    for name in $names; do stale "$out/$name" "$out"/*.o && echo "build_target . $out $name"; done | parallel
}

# ---- running ----------------------------------------------------------------------------------------------

limits="-timeout=5 -rss_limit_mb=1024 -malloc_limit_mb=256"

dictionary() {
    local name
    name=$(column "$1" 5)
    [ "$name" = - ] || echo "-dict=tests/fuzz/$name.dict"
}

# The result of one target, from its log and its exit status.
report() {
    local name=$1 status=$2 log=$3
    if [ "$status" -eq 0 ]; then
        echo "ok   $mode $name$(grep -oE ' [0-9]+ runs in [0-9]+ second| [0-9]+ new files' "$log" | tail -n 1)"
    else tail -n 40 "$log"; echo "FAIL $mode $name"
    fi
}

replay() {
    local name=$1 log=$out/replay-$1.log status=1 inputs
    inputs=$corpus/$(column "$name" 2)
    if [ -n "$(ls "$inputs" 2>/dev/null)" ]; then
        "$out/$name" -runs=0 $limits -artifact_prefix="$out/$name-" "$inputs" >"$log" 2>&1
        status=$?
    else echo "no inputs in $inputs" >"$log"
    fi
    report "$name" "$status" "$log"
}

# New inputs go to BUILD/fuzz/work/TARGET.
fuzz() {
    local name=$1 log=$out/fuzz-$1.log
    shift
    mkdir -p "$out/work/$name"
    "$out/$name" $limits $(dictionary "$name") -max_len="$(column "$name" 4)" -keep_seed=1 -print_final_stats=1 "$@" \
        -artifact_prefix="$out/$name-" "$out/work/$name" "$corpus/$(column "$name" 2)" >"$log" 2>&1
}

short() {
    fuzz "$1" -max_total_time="${SECONDS_EACH:-15}"
    report "$1" $? "$out/fuzz-$1.log"
}
export -f replay fuzz short report dictionary
export out corpus limits mode

# Counts the lines that begin with ok and FAIL.
tally() {
    tee "$out/report.txt"
    passed=$((passed + $(grep -c '^ok ' "$out/report.txt")))
    failed=$((failed + $(grep -c '^FAIL' "$out/report.txt")))
}

each() {
    local name
    for name in $names; do echo "$1 $name"; done | parallel >"$out/each.txt" 2>&1
    tally <"$out/each.txt"
}

# ---- campaigns --------------------------------------------------------------------------------------------

ledger() {
    [ -e tests/ledger.tsv ] || printf 'date\tcommit\tcpu\twhat\texecutions\tseconds\tresult\n' >tests/ledger.tsv
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$(date -u +%Y-%m-%d)" "$(git rev-parse --short HEAD)" \
        "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$@" >>tests/ledger.tsv
}

# Until its executions are done, or it crashes.
campaign() {
    local name=$1 count=$out/$1.count goal=${EXECUTIONS:-5000000} done begun ran status=0 result
    done=$(cat "$count" 2>/dev/null || echo 0)
    while [ "$done" -lt "$goal" ]; do
        begun=$(date +%s)
        nice bash -c 'fuzz "$@"' fuzz "$name" -entropic=0 -runs=$((goal - done)) \
            -max_total_time="${PIECE:-600}"
        status=$?
        ran=$(awk '/stat::number_of_executed_units/ { print $2 }' "$out/fuzz-$name.log")
        case $status in 0) result=passed ;; 72) result=interrupted ;; *) result=failed ;; esac
        ledger "fuzz $name" "${ran:-0}" $(($(date +%s) - begun)) "$result"
        done=$((done + ${ran:-0}))
        echo "$done" >"$count"
        [ "$status" -eq 0 ] || break
    done
    report "$name" "$status" "$out/fuzz-$name.log"
}
export -f campaign ledger

# ---- inputs -----------------------------------------------------------------------------------------------

make_seeds() {
    $clang $language -DJAMBA_NO_SIMD -DJMB_UNROLLED= -O1 -I. -o "$out/make_seeds" \
        tests/fuzz/seeds.c tests/fuzz/models.c -lm &&
        rm -rf "$out/seeds" && "$out/make_seeds" "$out/seeds"
}

# Of the targets that check no hash: the others share their inputs. Seeds and inputs
# that once crashed stay as they are.
minimise() {
    local name=$1 new=$out/minimised/$1 log=$out/minimise-$1.log seed
    rm -rf "$new"
    mkdir -p "$new" "$out/work/$name" "$out/work/${name}_mended" "$out/seeds/$name" "$corpus/$name"
    "$out/$name" -merge=1 -set_cover_merge=1 -use_counters=0 $limits -max_len="$(column "$name" 4)" "$new" \
        "$corpus/$name" "$out/seeds/$name" "$out/work/$name" "$out/work/${name}_mended" >"$log" 2>&1
    if [ $? -eq 0 ]; then
        find "$corpus/$name" -type f ! -name 'crash-*' -delete
        cp "$new"/* "$corpus/$name/"
        for seed in "$out/seeds/$name"/*; do cp "$seed" "$corpus/$name/seed-${seed##*/}"; done
        report "$name" 0 "$log"
    else report "$name" 1 "$log"
    fi
}
export -f minimise

# ---- the modes --------------------------------------------------------------------------------------------

need_build() {
    build_all && return
    echo "FAIL build"
    echo "0 passed, 1 failed"
    exit 1
}

case $mode in
build) need_build; passed=$(wc -w <<<"$names") ;;
seeds) make_seeds && passed=1 || failed=1 ;;
replay) need_build; each replay ;;
short) need_build; each replay; each short ;;
campaign) need_build; each campaign ;;
minimise) names=$(grep -v _mended <<<"$names"); need_build; [ -d "$out/seeds" ] || make_seeds; each minimise ;;
plants) . tests/fuzz/plants.sh ;;
esac
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
