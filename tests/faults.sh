#!/bin/sh
# faults.sh - the whole of tests/faults.c and tests/tool_faults.c: every fault, 500 kills, 64 sizes, 10,000 loads, and
# whether each allocation of jamba.h has failed
#
#     tests/faults.sh [BUILD [PART]]        PART: only what has this in its name
#
# Honours CC. Needs `make` in BUILD; unshare and strace, without which their tests are skipped. Adds what came of it to
# tests/ledger.tsv. Exit 1 when anything failed.
cd "$(dirname "$0")/.." || exit 1
build=${1:-build}
only=${2:-}
work=$build/faults.work
ledger=tests/ledger.tsv
failed=0
mkdir -p "$work" || exit 1
[ -s $ledger ] || printf 'date\tcommit\tcpu\twhat\texecutions\tseconds\tresult\n' >$ledger

# campaign NAME COUNTED COMMAND...: runs it; COUNTED: awk that finds the number of cases in its output
campaign() {
    name=$1 counted=$2
    shift 2
    case $name in *"$only"*) ;; *) return ;; esac
    begun=$(date +%s)
    "$@" >"$work/log" 2>&1 || failed=1
    cat "$work/log"
    summary=$(tail -n 1 "$work/log")
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$(date -u +%Y-%m-%d)" "$(git rev-parse --short HEAD)" \
        "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$name" "$(awk "$counted" "$work/log")" \
        $(($(date +%s) - begun)) "$summary" >>"$ledger"
}

awk -v count="$work/sites" -f tests/faults_sites.awk jamba.h >"$work/jamba.h" &&
    ${CC:-cc} -std=c99 -D_POSIX_C_SOURCE=200809L -D_DEFAULT_SOURCE -D_FILE_OFFSET_BITS=64 -O1 -DJMB_UNROLLED= \
        -DFAULTS_SITES="$(cat "$work/sites")" -I"$work" -I. -o "$build/tests/faults.sites" tests/faults.c -lm -pthread ||
    exit 1

campaign "allocation sites of jamba.h that failed" '/allocation sites have failed/ { print $1 " of " $3 }' \
    "$build/tests/faults.sites" --verbose
campaign "library: loads, after every allocation and system call" '/[0-9] loads$/ { print $2 }' \
    env SOAK=10000 "$build/tests/faults" --verbose
for part in faults "killed calls" "terminated calls" "kills: " "killed anywhere" "large files" "full disks" "storm"; do
    campaign "tools: ${part%: }" '/ runs of tools$/ { print $1 }' \
        env FAULTS=all "$build/tests/tool_faults" --filter "$part"
done
exit $failed
