#!/bin/bash
# platforms.sh - logits of other processors, emulated, against those of this one, byte for byte; tests in WebAssembly
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

# add_counts LOG: adds the counts in its last line
add_counts() {
    local counts
    read -r -a counts <<<"$(tail -n 1 "$1" | sed 's/[^0-9]/ /g')"
    passed=$((passed + ${counts[0]:-0})) failed=$((failed + ${counts[1]:-1})) skipped=$((skipped + ${counts[2]:-0}))
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
    for type in f32 bf16 q8 q4; do same "aarch64 $1" $type $run "$work/logits.aarch64" "$work/$type.jamba"; done
}

for type in f32 bf16 q8 q4; do
    "$build/convert" examples/storyteller "$work/$type.jamba" --type $type --force &&
        echo "$ids" | "$build/logits" "$work/$type.jamba" >"$work/$type.here" || exit 1
done

if command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64-static >/dev/null; then
    for source in tools/logits.c tests/unit_kernels.c; do
        aarch64-linux-gnu-gcc $flags -o "$work/$(basename $source .c).aarch64" $source -lm -pthread || exit 1
    done
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

# wasm_make FOLDER FLAGS TARGET...: builds targets of the Makefile in that folder; convert is this machine's.
wasm_make() {
    local folder=$1 flags=$2
    shift 2
    mkdir -p "$folder" && ln -sf "$(realpath "$build/convert")" "$folder/convert" &&
        make -s -j"$(nproc)" BUILD="$folder" CC=emcc WERROR=1 CFLAGS="-O2 $flags" LIBS=-lm LDFLAGS="$wasm_link" \
            "${@/#/$folder/}" && chmod +x "$folder"/tests/*
}

# wasm_tests FOLDER: runs the tests built there and adds their counts
wasm_tests() {
    RUN=node tests/run "$1" | tee "$work/tests.log"
    add_counts "$work/tests.log"
}

if command -v emcc >/dev/null && command -v node >/dev/null; then
    wasm_make "$work/wasm-simd" -msimd128 logits \
        tests/{golden,invariants,batch,quantised,programs,unit_kernels} || exit 1
    wasm_make "$work/wasm" "" logits tests/{golden,unit_kernels} || exit 1
    for type in f32 bf16 q8 q4; do
        same "WebAssembly with SIMD" $type node "$work/wasm-simd/logits" "$work/$type.jamba"
        same "WebAssembly without" $type node "$work/wasm/logits" "$work/$type.jamba"
    done
    wasm_tests "$work/wasm-simd"
    wasm_tests "$work/wasm"
else
    echo "skipped: WebAssembly, no emcc or node"
    skipped=$((skipped + 1))
fi

if [ "$skipped" -ne 0 ]; then echo "$passed passed, $failed failed, $skipped skipped"
else echo "$passed passed, $failed failed"; fi
[ "$failed" -eq 0 ]
