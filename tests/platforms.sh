#!/bin/bash
# platforms.sh - logits, saved states and converted files of other processors, systems and compilers against those
# of this machine, byte for byte, and tests run there
#
#     tests/platforms.sh [BUILD]
#
# PLATFORMS="i686 s390x" takes only those; TESTS=all runs more tests of each; PLATFORMS=all is all of both (make
# platforms). JOBS=N at a time (one per processor). Needs BUILD/convert and BUILD/logits, compilers and emulators. A
# platform without its compiler or emulator is skipped. Prints N passed, N failed[, N skipped].
cd "$(dirname "$0")/.." || exit 1
export LC_ALL=C.UTF-8 WINEDEBUG=-all # wine reads names of files by the locale
build=${1:-build}
work=$build/platforms
jobs=${JOBS:-$(nproc 2>/dev/null || echo 1)}
ids="1 4 47 26 73 50 36 72"
types="f32 bf16 q8 q4" # of the storyteller
cases="jamba-moe zamba2-rope mamba2-groups mixtral-top3" # other blocks, in f32
flags="-std=c99 -D_POSIX_C_SOURCE=200809L -D_DEFAULT_SOURCE -D_FILE_OFFSET_BITS=64 -I."
quick="-O1 -DJMB_UNROLLED=" # compiles in seconds
strict="-Wall -Wextra -Wconversion -Wshadow -Werror"
every=
if [ "$PLATFORMS" = all ]; then PLATFORMS= TESTS=all; fi
if [ "$TESTS" = all ]; then
    every="unit_kernels unit_text quantised limits"
    ids+=" 54 36 81 70 36 81 27 5 26 4 47 62 71 65 36 55"
fi

# name, what runs its programs (- where they run by themselves), compiler and its flags
table="
i686       -                    i686-linux-gnu-gcc $quick $strict -static
armhf      qemu-arm-static      arm-linux-gnueabihf-gcc $quick $strict -static
riscv64    qemu-riscv64-static  riscv64-linux-gnu-gcc $quick $strict -static
s390x      qemu-s390x-static    s390x-linux-gnu-gcc $quick $strict -static
musl       -                    musl-gcc $quick $strict -static -DJAMBA_NO_SIMD
tcc        -                    tcc
mingw      wine                 x86_64-w64-mingw32-gcc $quick $strict -static
msvc       -                    clang-16 --target=x86_64-pc-windows-msvc -fms-compatibility-version=19.35
aarch64    qemu-aarch64-static  aarch64-linux-gnu-gcc $quick $strict -static
wasm       node                 emcc
wasm-simd  node                 emcc -msimd128
"

# ---- one platform: $name, $run and $compiler of its row, $there is its folder ----------------------------------------

passed=0 failed=0 skipped=0
pass() { passed=$((passed + 1)); }
fail() {
    echo "FAIL $name: $*"
    failed=$((failed + 1))
}

# made SOURCE...: a program named as the first source is
made() {
    local program
    program=$there/${1%.c}$exe
    mkdir -p "$(dirname "$program")"
    $compiler $flags -o "$program" "$@" -lm -pthread >"$there/errors" 2>&1 && return
    cat "$there/errors"
    fail "does not compile $1"
    return 1
}

# same WHAT FILE FILE
same() {
    if cmp -s "$2" "$3"; then pass; else fail "$1: other bytes than here"; fi
}

# The logits of every model, with those options.
logits() {
    local model
    for model in $types $cases; do
        echo "$ids" | $run "$there/tools/logits$exe" "$work/$model.jamba" "$@" >"$there/logits.$model" 2>"$there/errors"
        cat "$there/errors"
        same "logits of $model $*" "$there/logits.$model" "$work/$model.here"
    done
}

# The converter itself, into names that are not ASCII.
conversions() {
    local type
    for type in $types; do
        $run "$there/tools/convert$exe" examples/storyteller "$there/für $type" --type $type --force \
            >"$there/errors" 2>&1
        cat "$there/errors"
        same "convert --type $type" "$there/für $type" "$work/$type.jamba"
        rm -f "$there/für $type"
    done
}

# add_counts LOG: adds the counts in its last line, which are missing when the program crashed
add_counts() {
    local last counts
    last=$(tail -n 1 "$1" | tr -d '\r')
    [[ $last =~ ^[0-9]+\ passed,\ [0-9]+\ failed(,\ [0-9]+\ skipped)?$ ]] || last="0 1"
    read -r -a counts <<<"${last//[^0-9]/ }"
    passed=$((passed + counts[0])) failed=$((failed + counts[1])) skipped=$((skipped + ${counts[2]:-0}))
    [ $((counts[0] + counts[1] + ${counts[2]:-0})) -gt 0 ]
}

# tests PROGRAM [FILTER...]: those tests of it whose names contain a filter; there must be some
tests() {
    local program=$there/tests/$1$exe filter
    shift
    for filter in "${@:-}"; do
        $run "$program" --filter "$filter" >"$there/tests.log" 2>&1
        grep -vE 'passed|worst error|KL' "$there/tests.log" | sed "s/^FAIL/FAIL $name:/"
        add_counts "$there/tests.log" || fail "$program: no test is named like '$filter'"
    done
}

# converter CONVERT: that one, where test programs look for it
converter() {
    mkdir -p "$there/tests" && ln -sf "$(realpath "$1")" "$there/convert$exe"
}

# Plain C, or what SIMD there is.
run_platform() {
    local part
    made tools/logits.c && logits
    made tools/convert.c && conversions
    if [ -n "$exe" ]; then converter "$there/tools/convert$exe"; else converter "$build/convert"; fi
    made tests/state.c && tests state "version 1"
    [ -n "$every" ] || return
    made tests/golden.c tests/api_second.c && tests golden
    for part in $every; do made "tests/$part.c" && tests "$part"; done
    [ -z "$exe" ] || return
    made tests/malformed.c && tests malformed
    made tests/damage.c && tests damage "every prefix"
}

# Compiles as for Visual Studio; its headers and libraries are not here.
run_msvc() {
    local language
    for language in "c -std=c11" "c++ -std=c++14"; do
        if $compiler -x $language $strict -O0 -ffreestanding -I. -isystem tests/compile/msvc \
            -c -o "$there/implementation.o" tests/compile/implementation.c; then pass
        else fail "does not compile as ${language% *}"; fi
    done
}

# Addresses of 32 bits.
run_i686() {
    run_platform
    if [ -z "$every" ]; then made tests/limits.c && tests limits; fi
}

# Each set of kernels, on a processor that chooses it.
run_aarch64() {
    local emulator=$run kernels
    converter "$build/convert"
    made tools/logits.c && made tests/unit_kernels.c && made tests/state.c || return
    run="$emulator -cpu max"
    tests unit_kernels # of each set
    for kernels in neon-i8mm:max neon-dotprod:cortex-a76 neon:cortex-a53; do
        run="$emulator -cpu ${kernels#*:}"
        if [[ $($run "$there/tests/unit_kernels" --list) != *"best kernels: ${kernels%:*}"$'\n'* ]]; then
            fail "${kernels#*:} does not choose ${kernels%:*}"
        fi
        tests state "version 1"
        logits
    done
    run=$emulator
    logits --cpu scalar
}

# For node, which reads files as the others do; with the small stack of newer versions of emcc. Without
# optimising the link, which takes long, and needs a package that not every node finds.
wasm_link="-O1 -sNODERAWFS=1 -sALLOW_MEMORY_GROWTH=1 -sWASM_ASYNC_COMPILATION=0 -sTOTAL_STACK=65536"

# wasm_make TARGET...: builds targets of the Makefile
wasm_make() {
    # emcc gives a program an environment of its own; here it has this one, for LAWS and CHATS.
    echo 'Module.preRun = () => { if (typeof ENV == "object") Object.assign(ENV, process.env); };' \
        >"$work/environment.js"
    converter "$build/convert"
    make -s -j"$jobs" BUILD="$there" CC=emcc WERROR=1 CFLAGS="-O2 ${compiler#emcc}" LIBS=-lm \
        LDFLAGS="$wasm_link --pre-js $work/environment.js" "${@/#/$there/}" && chmod +x "$there"/tests/* &&
        mkdir -p "$there/tools" && cp "$there"/logits* "$there/tools" || fail "does not compile"
}

# All the tests that are executable.
wasm_tests() {
    local chats=100
    [ -z "$every" ] || chats=300
    LAWS=300 CHATS=$chats RUN=node tests/run "$there" | tee "$there/tests.log"
    add_counts "$there/tests.log"
}

run_wasm() {
    wasm_make logits tests/{golden,unit_kernels} && logits && wasm_tests
}

run_wasm-simd() {
    local targets="golden batch quantised unit_kernels adapters talk state"
    [ -z "$every" ] || targets+=" invariants programs laws fork"
    wasm_make logits $(printf 'tests/%s ' $targets) || return
    logits
    chmod -x "$there"/tests/{fork,state} 2>/dev/null # those in parts: f32 takes long without fma
    wasm_tests
    tests state " q8" pages "no number" prefixes extremes hostile refused files "version 1"
    [ -z "$every" ] || tests fork jamba-moe "mamba2 "
}

# ---- all of them ----------------------------------------------------------------------------------------------------

# A row of the table, into its log.
platform() {
    local name=$1 run=${2#-} compiler=${*:3} there=$work/$1 exe= needs
    mkdir -p "$there"
    [[ $compiler == *mingw* ]] && exe=.exe
    for needs in $run $3; do
        command -v "$needs" >/dev/null && continue
        echo "skipped: $name, no $needs"
        skipped=1
    done
    if [ $skipped -eq 0 ]; then
        if declare -F "run_$name" >/dev/null; then "run_$name"; else run_platform; fi
    fi
    times >"$there/times"
    echo "$name: $(sed -n 2p "$there/times") of user and system"
    echo "$passed passed, $failed failed, $skipped skipped"
}

# here FOLDER TYPE MODEL: that model, and its logits
here() {
    "$build/convert" "$1" "$work/$3.jamba" --type "$2" --force 2>"$work/errors" &&
        echo "$ids" | "$build/logits" "$work/$3.jamba" >"$work/$3.here" && return
    cat "$work/errors"
    exit 1
}

mkdir -p "$work"
for type in $types; do here examples/storyteller "$type" "$type"; done
for case in $cases; do here "tests/cases/$case" f32 "$case"; done

chosen=()
while read -r name run compiler; do
    [ -n "$name" ] && [[ -z $PLATFORMS || " $PLATFORMS " == *" $name "* ]] || continue
    chosen+=("$name")
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
    platform "$name" "$run" $compiler >"$work/$name.log" 2>&1 &
done <<<"$table"
wait

for name in "${chosen[@]}"; do
    grep -vE '^[0-9]+ passed, [0-9]+ failed' "$work/$name.log"
    add_counts "$work/$name.log"
done
if [ ${#chosen[@]} -eq 0 ]; then
    echo "FAIL: no platform is named $PLATFORMS"
    failed=1
fi
if [ "$skipped" -ne 0 ]; then echo "$passed passed, $failed failed, $skipped skipped"
else echo "$passed passed, $failed failed"; fi
[ "$failed" -eq 0 ]
