# faults_sites.awk - jamba.h with the line of each allocation in `fault_site`, for tests/faults.c; how many there are is
# written to the file `count`. What only passes an allocation on is not one: its callers are.
BEGIN {
    helpers = "jmb_heap_take|jmb_heap_take_raw|jmb_room_add|jmb_room_take|jmb_session_alloc|jmb_table_make|jmb_trie_make"
    helpers = helpers "|jmb_section_u32|jmb_section_bytes"
}
/^[a-z].*\(/ {
    inside = $0
    sub(/\(.*/, "", inside)
    sub(/.*[ *]/, "", inside)
    print
    next
}
inside !~ "^(" helpers ")$" && match($0, "[()!* ](" helpers ")\\(") {
    $0 = substr($0, 1, RSTART) "(fault_site = " NR ", " substr($0, RSTART + 1, RLENGTH - 2) ")" \
        substr($0, RSTART + RLENGTH - 1)
    sites++
}
inside !~ "^(" helpers ")$" && match($0, "[A-Za-z_.]+(->|[.])[a-z.]*alloc\\([a-z]+(->|[.])") {
    $0 = substr($0, 1, RSTART - 1) "(fault_site = " NR ", " substr($0, RSTART, index(substr($0, RSTART), "(") - 1) ")" \
        substr($0, RSTART - 1 + index(substr($0, RSTART), "("))
    sites++
}
{ print }
END { print sites > count }
