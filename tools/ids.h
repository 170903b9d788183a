/* ids.h - token ids as text */
#ifndef IDS_H
#define IDS_H

#include "tool.h"

/* Whole decimal ids in [0, vocab), separated by blanks, as int32_t. `text` is cut into words. */
JMB_UNUSED static bool ids_parse(char *text, size_t size, int32_t vocab, tool_buffer *ids, tool_error *error)
{
    static const char blanks[] = " \t\r\n";
    char *word = text, *end = text + size;
    if (strlen(text) != size) return tool_error_set(error, "standard input: contains a NUL byte");
    while (*(word += strspn(word, blanks))) {
        char *after = word + strcspn(word, blanks);
        int64_t id;
        int32_t token;
        *after = 0;
        if (!tool_parse_int(word, 0, vocab - 1, &id))
            return tool_error_set(error, "standard input: \"%.40s\" is not a token of this model, an id from 0 to %d",
                word, (int)vocab - 1);
        token = (int32_t)id;
        if (!tool_buffer_add(ids, &token, sizeof token)) return tool_no_memory(error);
        word = after < end ? after + 1 : after;
    }
    return true;
}

#endif
