#!/bin/bash
# platforms.sh - logits and saved states of other processors, emulated, against those of this one, byte for byte; tests
# in WebAssembly
#
#     tests/platforms.sh [BUILD]
#
# Needs `make` in BUILD; gcc-aarch64-linux-gnu and qemu-user-static; emscripten and node. Prints N passed,
# N failed[, N skipped].
cd "$(dirname "$0")/.." || exit 1
build=${1:-build}
work=$build/platforms
flags="-std=c99 -D_POSIX_C_SOURCE=200809L -D_FILE_OFFSET_BITS=64 -I. -O2 -Wall -Wextra -Wconversion -Werror -static"
ids="1 4 477 262 1733 502 360 722 548 360 818 370 360 1817 276 5 262 4 478 262 712 659 360 555"
passed=0 failed=0 skipped=0
mkdir -p "$work"

# same NAME MODEL COMMAND...: the command's logits equal those of this machine
same() {
    local name=$1 model=$2
    shift 2
    if echo "$ids" | "$@" >"$work/there" 2>"$work/errors" && cmp -s "$work/there" "$work/$model.here"; then
        passed=$((passed + 1))
    else
        cat "$work/errors"
        echo "FAIL $name $model: other logits than here"
        failed=$((failed + 1))
    fi
}

# add_counts LOG: adds the counts in its last line, which are missing when the program crashed
add_counts() {
    local last counts
    last=$(tail -n 1 "$1")
    [[ $last =~ ^[0-9]+\ passed,\ [0-9]+\ failed(,\ [0-9]+\ skipped)?$ ]] || last="0 1"
    read -r -a counts <<<"${last//[^0-9]/ }"
    passed=$((passed + counts[0])) failed=$((failed + counts[1])) skipped=$((skipped + ${counts[2]:-0}))
}

# part FILTER COMMAND...: those tests of a program whose names contain FILTER; there must be some
part() {
    local filter=$1
    shift
    "$@" --filter "$filter" >"$work/tests.log" 2>&1
    grep -v passed "$work/tests.log"
    add_counts "$work/tests.log"
    if [[ $(tail -n 1 "$work/tests.log") == "0 passed, 0 failed" ]]; then
        echo "FAIL $*: no test is named like '$filter'"
        failed=$((failed + 1))
    fi
}

# aarch64 KERNELS CPU: on that CPU those kernels must be chosen, pass their tests, and give equal logits
aarch64() {
    local run="qemu-aarch64-static -cpu $2" type
    $run "$work/unit_kernels.aarch64" >"$work/tests.log" 2>&1
    grep -v passed "$work/tests.log"
    add_counts "$work/tests.log"
    if [[ $($run "$work/unit_kernels.aarch64" --list) != *"best kernels: $1"$'\n'* ]]; then
        echo "FAIL aarch64: $2 does not choose $1"
        failed=$((failed + 1))
    fi
    part "version 1" $run "$work/aarch64/tests/state" # which x86 saved
    for type in f32 bf16 q8 q4; do same "aarch64 $1" $type $run "$work/logits.aarch64" "$work/$type.jamba"; done
}

# aarch64_make SOURCE PROGRAM FLAGS...
aarch64_make() {
    aarch64-linux-gnu-gcc $flags "${@:3}" -o "$work/$2" "$1" -lm -pthread
}

# convert_for FOLDER: this machine's converter, where test programs of that build folder look for it
convert_for() {
    mkdir -p "$1/tests" && ln -sf "$(realpath "$build/convert")" "$1/convert"
}

for type in f32 bf16 q8 q4; do
    "$build/convert" examples/storyteller "$work/$type.jamba" --type $type --force &&
        echo "$ids" | "$build/logits" "$work/$type.jamba" >"$work/$type.here" || exit 1
done

if command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64-static >/dev/null; then
    convert_for "$work/aarch64" || exit 1
    aarch64_make tests/state.c aarch64/tests/state -O1 -DJMB_UNROLLED= -D_DEFAULT_SOURCE &
    aarch64_make tools/logits.c logits.aarch64 && aarch64_make tests/unit_kernels.c unit_kernels.aarch64 || exit 1
    wait $! || exit 1
    aarch64 neon-i8mm max
    aarch64 neon-dotprod cortex-a76
    aarch64 neon cortex-a53
    for type in f32 bf16 q8 q4; do
        same "aarch64 plain C" $type qemu-aarch64-static "$work/logits.aarch64" "$work/$type.jamba" --cpu scalar
    done
else
    echo "skipped: aarch64, no compiler or emulator"
    skipped=$((skipped + 1))
fi

# For node, which reads files as the others do; with the small stack of newer versions of emcc. Without
# optimising the link, which takes long, and needs a package that not every node finds.
wasm_link="-O1 -sNODERAWFS=1 -sALLOW_MEMORY_GROWTH=1 -sWASM_ASYNC_COMPILATION=0 -sTOTAL_STACK=65536"

# emcc gives a program an environment of its own; here it has this one, for LAWS and CHATS.
echo 'Module.preRun = () => { if (typeof ENV == "object") Object.assign(ENV, process.env); };' >"$work/environment.js"
wasm_link+=" --pre-js $work/environment.js"

# wasm_make FOLDER FLAGS TARGET...: builds targets of the Makefile in that folder
wasm_make() {
    local folder=$1 flags=$2
    shift 2
    convert_for "$folder" &&
        make -s -j"$(nproc)" BUILD="$folder" CC=emcc WERROR=1 CFLAGS="-O2 $flags" LIBS=-lm LDFLAGS="$wasm_link" \
            "${@/#/$folder/}" && chmod +x "$folder"/tests/*
}

# wasm_tests FOLDER: runs the tests built there and adds their counts
wasm_tests() {
    LAWS=300 CHATS=300 RUN=node tests/run "$1" | tee "$work/tests.log"
    add_counts "$work/tests.log"
}

if command -v emcc >/dev/null && command -v node >/dev/null; then
    wasm_make "$work/wasm-simd" -msimd128 logits \
        tests/{golden,invariants,batch,quantised,programs,unit_kernels,adapters,talk,laws,fork,state} || exit 1
    wasm_make "$work/wasm" "" logits tests/{golden,unit_kernels} || exit 1
    for type in f32 bf16 q8 q4; do
        same "WebAssembly with SIMD" $type node "$work/wasm-simd/logits" "$work/$type.jamba"
        same "WebAssembly without" $type node "$work/wasm/logits" "$work/$type.jamba"
    done
    chmod -x "$work"/wasm-simd/tests/{fork,state} # those in parts: f32 takes long without fma
    wasm_tests "$work/wasm-simd"
    for name in jamba-moe "mamba2 "; do part "$name" node "$work/wasm-simd/tests/fork"; done
    for name in " q8" pages "no number" prefixes extremes hostile refused files "version 1"; do
        part "$name" node "$work/wasm-simd/tests/state"
    done
    wasm_tests "$work/wasm"
else
    echo "skipped: WebAssembly, no emcc or node"
    skipped=$((skipped + 1))
fi

if [ "$skipped" -ne 0 ]; then echo "$passed passed, $failed failed, $skipped skipped"
else echo "$passed passed, $failed failed"; fi
[ "$failed" -eq 0 ]
