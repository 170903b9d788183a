#!/bin/sh
# sweeps.sh - every sweep whole: each prefix, each byte in all ways, 100,000 random mutations of each format, 10,000
# random models; appends what came of it to tests/ledger.tsv
#
#     tests/sweeps.sh BUILD        the folder with the test programs; MUTATIONS=N and MODELS=N for others
cd "$(dirname "$0")/.." || exit 1
build=${1:-build}
ledger=tests/ledger.tsv
: "${MUTATIONS:=100000}" "${MODELS:=10000}"
SWEEPS=all
export SWEEPS MUTATIONS MODELS
failed=0
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)

# run WHAT COUNT PROGRAM [OPTIONS]: one program, and its line in the ledger.
run() {
    what=$1 count=$2 program=$3
    shift 3
    begun=$(date +%s)
    result=$("$build/tests/$program" "$@" | tee /dev/stderr | tail -n 1)
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$(date +%F)" "$(git rev-parse --short HEAD 2>/dev/null)" "$cpu" "$what" \
        "$count" "$(($(date +%s) - begun))" "$result" >>"$ledger"
    case $result in *" passed, 0 failed"*) ;; *) failed=1 ;; esac
}

run "random models against the naive forward" "$MODELS" models
run "sweeps: model files, 5 programs" "$MUTATIONS mutations" damage
run "sweeps: saved states, 3 forms" "$MUTATIONS mutations" state --filter bytes
run "sweeps: adapters" "$MUTATIONS mutations" adapters --filter refusals
run "sweeps: checkpoint folders" "$MUTATIONS mutations" convert_damage --filter prefix
run "sweeps: checkpoint folders" "$MUTATIONS mutations" convert_damage --filter changed
run "sweeps: PEFT folders" "$MUTATIONS mutations" lora_convert --filter damage
exit $failed
