#!/bin/bash
# platforms.sh - logits of other processors, emulated, against those of this one, byte for byte
#
#     tests/platforms.sh [BUILD]
#
# Needs `make` in BUILD, gcc-aarch64-linux-gnu and qemu-user-static. Prints N passed, N failed[, N skipped].
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

for type in f32 bf16 q8 q4; do
    "$build/convert" examples/storyteller "$work/$type.jamba" --type $type --force &&
        echo "$ids" | "$build/logits" "$work/$type.jamba" >"$work/$type.here" || exit 1
done

if command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64-static >/dev/null; then
    aarch64-linux-gnu-gcc $flags -o "$work/logits.aarch64" tools/logits.c -lm -pthread || exit 1
    for type in f32 bf16 q8 q4; do
        same "aarch64 with dot product" $type qemu-aarch64-static -cpu max "$work/logits.aarch64" "$work/$type.jamba"
        same "aarch64 without" $type qemu-aarch64-static -cpu cortex-a53 "$work/logits.aarch64" "$work/$type.jamba"
        same "aarch64 plain C" $type qemu-aarch64-static "$work/logits.aarch64" "$work/$type.jamba" --cpu scalar
    done
else
    echo "skipped: aarch64, no compiler or emulator"
    skipped=$((skipped + 1))
fi

if [ "$skipped" -ne 0 ]; then echo "$passed passed, $failed failed, $skipped skipped"
else echo "$passed passed, $failed failed"; fi
[ "$failed" -eq 0 ]
