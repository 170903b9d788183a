/* rules.h - one rule, one row: the messages that tests have produced, against those in the source of the readers
 *
 * rules_note() keeps a message. rules_check() reads a source file, takes every call that refuses something, makes a
 * pattern of its message, and reports those that no kept message fits, unless they are listed as out of reach. */
#ifndef RULES_H
#define RULES_H

#include "support.h"

enum { RULES_TEXT = 400 };

/* A function that refuses: its name, and how its first string literal becomes the message. */
typedef struct rules_call {
    const char *name, *before, *after;
} rules_call;

/* A message that no input reaches here, and why. */
typedef struct rules_excuse {
    const char *message, *why;
} rules_excuse;

static struct {
    char (*kept)[RULES_TEXT];
    size_t count, room;
} rules_messages;

TEST_UNUSED static void rules_note(const char *message)
{
    size_t i;
    for (i = 0; i < rules_messages.count; i++)
        if (strcmp(rules_messages.kept[i], message) == 0) return;
    if (rules_messages.count == rules_messages.room) {
        rules_messages.room = 2 * rules_messages.room + 64;
        rules_messages.kept =
            (char(*)[RULES_TEXT])realloc(rules_messages.kept, rules_messages.room * sizeof *rules_messages.kept);
        test_require(rules_messages.kept != NULL, "out of memory", "rules");
    }
    snprintf(rules_messages.kept[rules_messages.count++], RULES_TEXT, "%.*s", RULES_TEXT - 1, message);
}

/* ---- patterns ------------------------------------------------------------------------------------ */

/* The end of the conversion that `p` points at: %u, %l, %z, %llu, %.128s. */
static const char *rules_conversion_end(const char *p)
{
    p += 1 + strspn(p + 1, "0123456789.*-");
    if (*p != 'l' && *p != 'z') return p + (*p != 0);
    p += strspn(p, "lz");
    return p + (*p && strchr("udx", *p) != NULL);
}

/* Whether text begins as the pattern says; a conversion stands for any text, of a number for digits. */
static bool rules_fits(const char *pattern, const char *text)
{
    while (*pattern) {
        if (pattern[0] == '%' && pattern[1] == '%') {
            pattern++;
        } else if (*pattern == '%') {
            const char *end = rules_conversion_end(pattern);
            bool any = end[-1] == 's' || end[-1] == 'g';
            for (;; text++) {
                if (rules_fits(end, text)) return true;
                if (!*text || (!any && !strchr("-0123456789", *text))) return false;
            }
        }
        if (*pattern++ != *text++) return false;
    }
    return true;
}

static bool rules_produced(const char *pattern)
{
    size_t i;
    const char *at;
    for (i = 0; i < rules_messages.count; i++)
        for (at = rules_messages.kept[i]; *at; at++)
            if (rules_fits(pattern, at)) return true;
    return false;
}

/* ---- the source ------------------------------------------------------------------------------------ */

/* The first string literal among the arguments that begin at p, with the literals that follow it. */
static bool rules_literal(const char *p, char *out)
{
    size_t used = 0;
    int depth = 1;
    bool found = false;
    for (; *p && depth > 0; p++) {
        if (*p == '"') {
            found = true;
            for (p++; *p && *p != '"' && used + 1 < RULES_TEXT; p++) {
                if (*p == '\\') p++;
                out[used++] = *p;
            }
        } else if (found && !strchr(" \n\t", *p)) {
            break;
        } else if (*p == '(') {
            depth++;
        } else if (*p == ')') {
            depth--;
        } else if (*p == '{') {
            return false; /* a definition */
        }
    }
    out[used] = 0;
    return found;
}

static bool rules_excused(const char *pattern, const rules_excuse *excuses)
{
    for (; excuses && excuses->message; excuses++)
        if (strstr(pattern, excuses->message)) return true;
    return false;
}

/* Every call in `text`; returns how many patterns there are. */
static size_t rules_check_text(
    const char *path, const char *text, const rules_call *call, const rules_excuse *excuses)
{
    char literal[RULES_TEXT], pattern[2 * RULES_TEXT], name[80];
    size_t count = 0, length = (size_t)snprintf(name, sizeof name, "%s(", call->name);
    const char *p = text;
    for (; (p = strstr(p, name)) != NULL; p += length) {
        bool whole = p == text || !(p[-1] == '_' || (p[-1] >= 'a' && p[-1] <= 'z'));
        if (!whole || !rules_literal(p + length, literal)) continue;
        snprintf(pattern, sizeof pattern, "%s%s%s", call->before, literal, call->after);
        count++;
        CHECK_THAT(rules_produced(pattern) != rules_excused(pattern, excuses), "%s: %s by any row: %s", path,
            rules_excused(pattern, excuses) ? "is said to be out of reach, and is produced" : "is not produced",
            pattern);
    }
    return count;
}

/* The source from the line that has `from` to the one that has `to` (NULL: all of it). */
TEST_UNUSED static size_t rules_check(const char *path, const char *from, const char *to, const rules_call *calls,
    size_t call_count, const rules_excuse *excuses)
{
    size_t size, i, count = 0;
    char *source = (char *)file_need(path, &size), *start = from ? strstr(source, from) : source;
    char *end = start && to ? strstr(start, to) : NULL;
    test_require(start && (!to || end), "the source lacks", from ? from : to);
    if (end) *end = 0;
    for (i = 0; i < call_count; i++) count += rules_check_text(path, start, &calls[i], excuses);
    free(source);
    return count;
}

#endif
