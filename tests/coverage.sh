#!/bin/bash
# coverage.sh - what the tests execute: branches and MC/DC of everything that reads a file, lines of the header
#
#     tests/coverage.sh [BUILD] [TEST...]       BUILD: build; without TEST every test program runs, and every tool is
#                                               built; with TEST only those and the converter
#
# Needs clang-19 and llvm-19 (clang's -fcoverage-mcdc) and python3. Builds everything into BUILD/coverage, runs the
# tests and what they start, and lists each branch side and condition of the readers that stays undecided; ALL=1
# lists those of the whole header too. REPORT=1 only reports what ran before. Exit 1 when a test or a goal fails.
#
# A static function of a header has the same name in every program (-main-file-name), so that its counts are added
# up over all programs by the profile itself.
cd "$(dirname "$0")/.." || exit 1
build=${1:-build}/coverage
[ $# -gt 0 ] && shift
export JOBS=${JOBS:-$(nproc 2>/dev/null || echo 1)} LLVM_COV=${LLVM_COV:-llvm-cov-19}
flags="-O1 -w -DJMB_UNROLLED= -fprofile-instr-generate -fcoverage-mapping -fcoverage-mcdc"
flags="$flags -Xclang -main-file-name -Xclang all.c"
failed=0
mkdir -p "$build" || exit 1

tests=("$@") tools=(tools/convert.c)
if [ ${#tests[@]} -eq 0 ]; then
    tools=(tools/*.c examples/*.c)
    for test in tests/*.c; do
        case $test in
        tests/api_second.c | tests/real_size.c | *_preload.c) continue ;;
        tests/tool_faults.c) continue ;; # lets every system call of a tool fail, and writing a profile makes some
        esac
        tests+=("$(basename "$test" .c)")
    done
fi
programs=()
for tool in "${tools[@]}"; do programs+=("$build/$(basename "$tool" .c)"); done

make -s -j"$JOBS" BUILD="$build" CC="${CC:-clang-19}" CXX="${CXX:-clang++-19}" CFLAGS="$flags" CXXFLAGS="$flags" \
    "${programs[@]}" "${tests[@]/#/$build/tests/}" >"$build.log" 2>&1 || { cat "$build.log"; exit 1; }

if [ -z "$REPORT" ]; then
    rm -rf "$build/profiles" && mkdir -p "$build/profiles" || exit 1
    export LLVM_PROFILE_FILE="$PWD/$build/profiles/%m-%p.profraw" LAWS=${LAWS:-200} CHATS=${CHATS:-200}
    if [ $# -eq 0 ]; then tests/run "$build" || failed=1
    else for test in "${tests[@]}"; do "$build/tests/$test" || failed=1; done
    fi
fi
find "$build/profiles" -name '*.profraw' -size +0 >"$build/profiles.txt"
"${LLVM_PROFDATA:-llvm-profdata-19}" merge --failure-mode=all -f "$build/profiles.txt" -o "$build/all.profdata" ||
    exit 1
python3 tests/coverage.py "$build/all.profdata" "${tests[@]/#/$build/tests/}" "${programs[@]}" || failed=1
exit $failed
