#!/bin/bash
# compile.sh - jamba.h under every compiler, language and optimisation that there is here
#
#     tests/compile.sh [BUILD]     BUILD: where build/convert is (default: build); results in BUILD/compile
#
# Warnings are errors. Then: two translation units, symbols of the object, and whether every build of
# compile/bits.c writes the same bytes. Last line: N passed, N failed[, N skipped].
cd "$(dirname "$0")/.." || exit 1
build=${1:-build}
out=$build/compile
rm -rf "$out" && mkdir -p "$out" || exit 1
warnings="-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wvla -Werror"
jobs=$(nproc 2>/dev/null || echo 2)
passed=0 failed=0 skipped=0

# First of the names that is installed.
first_of() {
    local name
    for name in "$@"; do
        command -v "$name" >/dev/null || continue
        echo "$name"
        return
    done
    return 1
}
c_compilers=() cxx_compilers=()
for pair in "gcc g++" "$(first_of clang-16 clang clang-19 clang-14) $(first_of clang++-16 clang++ clang++-19 clang++-14)"; do
    read -r c cxx <<<"$pair"
    if [ -n "$c" ] && [ -n "$cxx" ]; then
        c_compilers+=("$c") cxx_compilers+=("$cxx")
    else
        echo "SKIP compile: no gcc or no clang here"
        skipped=$((skipped + 1))
    fi
done

# ---- commands run side by side: queue NAME COMMAND, then run_queue ----
queue() {
    printf '%s\n' "$2" >"$out/$1.sh"
}
run_queue() {
    local script name
    ls "$out"/*.sh | xargs -P "$jobs" -I{} sh -c 'sh {} >{}.log 2>&1; echo $? >{}.status'
    for script in "$out"/*.sh; do
        name=$(basename "$script" .sh)
        result "$name" "$(cat "$script.status")" "$script.log"
        rm -f "$script" "$script.status"
    done
}
result() { # NAME STATUS LOG
    if [ "$2" -eq 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL compile: $1"
        head -n 20 "$3"
    fi
}

# ---- warnings ----
echo "compile: ${c_compilers[*]} ${cxx_compilers[*]}, C99 C++11 at -O0 to -O3, C11 C++17, plain and JAMBA_STATIC"
source=tests/compile/implementation.c
for i in "${!c_compilers[@]}"; do
    for std in c99 c11 c++11 c++17; do
        case $std in c++*) compiler="${cxx_compilers[$i]} -x c++" ;; *) compiler=${c_compilers[$i]} ;; esac
        case $std in c99 | c++11) levels="0 1 2 3" ;; *) levels=1 ;; esac
        for level in $levels; do
            name="${c_compilers[$i]}-$std-O$level"
            graph=
            [ "$name" = "gcc-c99-O$level" ] && graph=-fcallgraph-info=su
            queue "$name" "$compiler -std=$std -O$level $warnings $graph -I. -c -o $out/$name.o $source"
        done
        queue "${c_compilers[$i]}-$std-static" \
            "$compiler -std=$std -O0 -DJAMBA_STATIC $warnings -I. -c -o $out/static.$i.$std.o $source"
    done
    # Without -std gcc fuses multiplications and additions where the target can, as it does for most users.
    queue "${c_compilers[$i]}-openmp" "${c_compilers[$i]} -std=c99 -O2 -fopenmp $warnings -I. -c -o $out/openmp.$i.o $source"
    queue "${c_compilers[$i]}-gnu-O3" "${c_compilers[$i]} -O3 $warnings -I. -c -o $out/gnu-O3.$i.o $source"
    queue "${c_compilers[$i]}-native" "${c_compilers[$i]} -O2 -march=native $warnings -I. -c -o $out/native.$i.o $source"
    queue "${c_compilers[$i]}-fused" "${c_compilers[$i]} -O2 -ffp-contract=fast -funsigned-char -fshort-enums \
        $warnings -I. -c -o $out/fused.$i.o $source"
    queue "${c_compilers[$i]}-gnu++" "${cxx_compilers[$i]} -x c++ -O2 $warnings -I. -c -o $out/gnu++.$i.o $source"
done
for target in aarch64-linux-gnu arm-linux-gnueabihf i686-linux-gnu; do
    name=$target-c99-O0
    flags="-Walloca -fcallgraph-info=su"
    [ $target = i686-linux-gnu ] && flags="$flags -msse2 -mfpmath=sse" # without which nothing loads
    if command -v $target-gcc >/dev/null; then
        queue "$name" "$target-gcc -std=c99 -O0 $warnings $flags -I. -c -o $out/$name.o $source"
    else
        echo "SKIP compile: no $target-gcc here"
        skipped=$((skipped + 1))
    fi
done
run_queue
printf '#define JAMBA_STATIC\n#include "jamba.h"\n' >"$out/alone.c"
if "${c_compilers[0]}" -I. -c -o "$out/alone.o" "$out/alone.c" >"$out/alone.log" 2>&1; then
    result "JAMBA_STATIC without JAMBA_IMPLEMENTATION must not compile" 1 "$out/alone.log"
else
    grep -q 'JAMBA_STATIC needs JAMBA_IMPLEMENTATION' "$out/alone.log"
    result "message about JAMBA_STATIC" $? "$out/alone.log"
fi

# ---- two translation units, in any mixture ----
echo "compile: two translation units"
for i in "${!c_compilers[@]}"; do
    for user in "${c_compilers[$i]} -std=c99" "${cxx_compilers[$i]} -std=c++11 -x c++"; do
        for library in "${c_compilers[$i]}-c99-O2" "${c_compilers[$i]}-c++11-O2"; do
            name="user-${user%% *}-with-$library"
            queue "$name" "$user $warnings -I. -c -o $out/$name.o tests/compile/user.c &&
                ${cxx_compilers[$i]} -o $out/$name $out/$name.o $out/$library.o -lm && $out/$name"
        done
    done
done
run_queue

# ---- stack ----
tests/stack.sh "$out"/*-c99-O?.ci >"$out/stack.log"
status=$?
grep -v passed "$out/stack.log"
result "stack and recursion" $status "$out/stack.log"

# ---- symbols: nothing writable, no call that a library in a host must not make ----
echo "compile: sections and symbols"
libc="malloc|free|mem(cpy|move|set|cmp)|str(len|cmp|ncmp)"
system="open|close|read|lseek|fstat|mmap|munmap|madvise|clock_gettime|gettimeofday|sched_yield|__errno_location"
compiler="sqrtf|fmaf|bcmp|__stack_chk_fail|_GLOBAL_OFFSET_TABLE_|__gxx_personality_v0" # its own calls
arm="getauxval|fegetenv|fesetenv|__aarch64_(cas8|ldadd4)_acq_rel|__aeabi_(u?idiv(mod)?|uldivmod|d2ulz|f2lz|[u]?l2[df])"
i686="__u(div|mod)di3"
allowed="^($libc|$system|$compiler|$arm|$i686)$"
for object in "$out"/*-c99-O?.o "$out"/*-c++11-O?.o; do
    [[ $(basename "$object") == user-* ]] && continue # of a program, not of the library
    size -A "$object" | grep -v '^\.data\.rel\.local\.DW\.ref\.__gxx' |
        awk '$1 ~ /^\.(data|bss|tdata|tbss)/ && $1 !~ /^\.data\.rel\.ro/ && $2 > 0 { print; bad = 1 }
        END { exit bad }' >"$object.log"
    status=$?
    result "writable data in $(basename "$object")" $status "$object.log"
    nm -u "$object" | awk '{ print $2 }' | sed 's/@.*//' | grep -vE "$allowed" >"$object.log"
    [ $? -eq 1 ]
    status=$?
    result "undefined symbols of $(basename "$object")" $status "$object.log"
done

# ---- the same bytes ----
echo "compile: the same logits from every build"
if [ ! -x "$build/convert" ]; then
    echo "FAIL compile: no $build/convert: run make first"
    failed=$((failed + 1))
else
    # -ffast-math also makes the program begin with subnormals flushed
    queue fast-math "${c_compilers[0]} -std=c99 -O1 -ffast-math -DJMB_UNROLLED= -D_POSIX_C_SOURCE=200809L \\
        -D_DEFAULT_SOURCE -I. -o $out/numerics tests/numerics.c -lm -pthread && STEPS=2000 $out/numerics"
    models=()
    for spec in jamba-moe:f32 jamba-moe:q8 jamba-gqa-bf16-sharded:bf16 mamba-bias:f16 llama-llama3:q8 mixtral-top3:f32; do
        model=$out/${spec%:*}.${spec#*:}.jamba
        "$build/convert" "tests/cases/${spec%:*}" "$model" --type "${spec#*:}" --force 2>/dev/null || failed=$((failed + 1))
        models+=("$model")
    done
    builds=()
    for i in "${!c_compilers[@]}"; do
        for object in "${c_compilers[$i]}-c99-O0" gnu-O3.$i native.$i fused.$i openmp.$i gnu++.$i; do
            builds+=("$i $object")
        done
    done
    "${c_compilers[0]}" -std=c99 $warnings -I. -c -o "$out/bits.o" tests/compile/bits.c >"$out/bits.log" 2>&1
    result "bits.c" $? "$out/bits.log"
    for b in "${!builds[@]}"; do
        read -r i object <<<"${builds[$b]}"
        openmp=
        [[ $object == openmp* ]] && openmp=-fopenmp
        queue "bits-$b" "${cxx_compilers[$i]} $openmp -o $out/bits.$b $out/bits.o $out/$object.o -lm"
    done
    run_queue
    for b in "${!builds[@]}"; do
        [ -x "$out/bits.$b" ] || continue
        for model in "${models[@]}"; do
            for cpu in best scalar; do
                if [ "$b" -eq 0 ] && [ "$cpu" = best ]; then
                    "$out/bits.0" "$model" best >"$model.want" 2>"$out/bits.log" && [ -s "$model.want" ]
                else
                    "$out/bits.$b" "$model" "$cpu" 2>"$out/bits.log" | cmp - "$model.want" 2>>"$out/bits.log"
                fi
                status=$? # before the name is made: a command substitution has a status too
                result "${builds[$b]#* }: logits of $(basename "$model") ($cpu)" $status "$out/bits.log"
            done
        done
    done
fi

echo
if [ "$skipped" -ne 0 ]; then echo "$passed passed, $failed failed, $skipped skipped"
else echo "$passed passed, $failed failed"; fi
[ "$failed" -eq 0 ]
