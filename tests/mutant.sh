# mutant.sh - a copy of the sources with one mistake in it; read by mutations.sh and fuzz.sh

# mutant COPY FILE OLD NEW [OLD NEW...]: makes COPY/source, where each first OLD of FILE is replaced. Without FILE
# nothing is. False, and says so, when an OLD is not there.
mutant() {
    local copy=$1 file=${2:-} text
    rm -rf "$copy"
    mkdir -p "$copy/source/tests"
    cp -r jamba.h tools examples "$copy/source/" && cp tests/*.[ch] "$copy/source/tests/" || return 1
    mkdir "$copy/source/tests/fuzz" && cp tests/fuzz/*.[ch] "$copy/source/tests/fuzz/" || return 1
    shift $(($# < 2 ? $# : 2))
    while [ $# -ge 2 ]; do
        text=$(<"$copy/source/$file")
        if [[ $text != *"$1"* ]]; then
            echo "the line to change is not in $file: $1"
            return 1
        fi
        printf '%s\n' "${text/"$1"/"$2"}" >"$copy/source/$file"
        shift 2
    done
}
