/* pattern.h - the part of Python's regular expressions that configurations of adapters use, on names of modules.
 *
 * Literals, . [...] \d \w \s \b and their opposites, ^ $, groups, alternatives, * + ? {m,n} greedy or lazy, and
 * looking ahead. Anything else is refused, never guessed. A pattern is walked once, with the set of all places of the
 * text where it can be: no backtracking, so no pattern takes more than its length times that of the text squared.
 */
#ifndef PATTERN_H
#define PATTERN_H

#include "tool.h"

enum { PATTERN_TEXT = 1024, PATTERN_DEPTH = 16, PATTERN_STEPS = 1 << 16, PATTERN_MANY = 1 << 16 };

/* Places in the text, one bit each: before each character, and at its end. */
typedef struct pattern_set {
    uint8_t bits[PATTERN_TEXT / 8 + 1];
} pattern_set;

typedef struct pattern_walk {
    const char *p; /* what of the pattern is left */
    const char *text;
    size_t length;
    uint32_t depth, steps;
    bool failed; /* the pattern is wrong, not known here, or takes too long */
} pattern_walk;

static void pattern_alternatives(pattern_walk *w, const pattern_set *in, pattern_set *out);

static bool pattern_has(const pattern_set *set, size_t i)
{
    return set->bits[i / 8] >> i % 8 & 1;
}

static void pattern_put(pattern_set *set, size_t i, bool here)
{
    if (here) set->bits[i / 8] |= (uint8_t)(1 << i % 8);
}

static bool pattern_fail(pattern_walk *w)
{
    w->failed = true;
    w->p += strlen(w->p);
    return false;
}

static bool pattern_is_word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || (c & 0x80);
}

/* Whether c is one of what \d, \w or \s stands for; capitals mean the opposite. */
static bool pattern_class_has(char name, char c)
{
    bool lower = name >= 'a';
    switch (lower ? name : (char)(name + 32)) {
    case 'd': return (c >= '0' && c <= '9') == lower;
    case 'w': return pattern_is_word(c) == lower;
    default: return (c == ' ' || (c >= 9 && c <= 13)) == lower;
    }
}

static bool pattern_is_class(char c)
{
    return c != 0 && strchr("dwsDWS", c) != NULL;
}

/* The character after a backslash, if it stands for itself. */
static char pattern_escaped(pattern_walk *w)
{
    char c = *w->p;
    if (c == 0 || pattern_is_word(c)) pattern_fail(w);
    else w->p++;
    return c;
}

/* One member of [...] at w->p: whether it has c. */
static bool pattern_member(pattern_walk *w, char c)
{
    unsigned char low = (unsigned char)*w->p++, high, value = (unsigned char)c;
    if (low == '\\') {
        if (pattern_is_class(*w->p)) return pattern_class_has(*w->p++, c);
        low = (unsigned char)pattern_escaped(w);
    }
    if (w->p[0] != '-' || w->p[1] == ']' || w->p[1] == 0) return value == low;
    w->p++;
    high = (unsigned char)*w->p++;
    if (high == '\\') high = (unsigned char)pattern_escaped(w);
    if (high < low) return pattern_fail(w);
    return value >= low && value <= high;
}

/* One character of the pattern at w->p, which is moved behind it: whether it is c. */
static bool pattern_accepts(pattern_walk *w, char c)
{
    char first = *w->p++;
    bool other, found = false;
    if (first == '.') return c != '\n';
    if (first == '\\') return pattern_is_class(*w->p) ? pattern_class_has(*w->p++, c) : pattern_escaped(w) == c;
    if (first != '[') return first == c;
    other = *w->p == '^';
    if (other) w->p++;
    do { /* a ] in front is a member */
        if (*w->p == 0) return pattern_fail(w);
        found |= pattern_member(w, c);
    } while (*w->p != ']' && !w->failed);
    if (!w->failed) w->p++;
    return found != other;
}

/* Every place after one character from `in`. */
static void pattern_character(pattern_walk *w, const pattern_set *in, pattern_set *out)
{
    const char *start = w->p;
    size_t i;
    memset(out, 0, sizeof *out);
    pattern_accepts(w, 0); /* moves on even where no place is left */
    for (i = 0; i < w->length && !w->failed; i++) {
        if (!pattern_has(in, i)) continue;
        w->p = start;
        pattern_put(out, i + 1, pattern_accepts(w, w->text[i]));
    }
}

static bool pattern_at_border(const pattern_walk *w, size_t i)
{
    return (i > 0 && pattern_is_word(w->text[i - 1])) != (i < w->length && pattern_is_word(w->text[i]));
}

/* ^ $ \b \B: the places where they hold. */
static void pattern_anchor(pattern_walk *w, char kind, const pattern_set *in, pattern_set *out)
{
    size_t i;
    memset(out, 0, sizeof *out);
    for (i = 0; i <= w->length; i++) {
        bool holds = kind == '^' ? i == 0 : kind == '$' ? i == w->length : pattern_at_border(w, i) == (kind == 'b');
        pattern_put(out, i, pattern_has(in, i) && holds);
    }
}

/* (?=...) and (?!...): the places from which the group leads somewhere, or nowhere. */
static void pattern_ahead(pattern_walk *w, bool wanted, const pattern_set *in, pattern_set *out)
{
    const char *start = w->p;
    pattern_set one, end;
    size_t i, j;
    memset(&one, 0, sizeof one);
    memset(out, 0, sizeof *out);
    pattern_alternatives(w, &one, &end);
    for (i = 0; i <= w->length && !w->failed; i++) {
        bool found = false;
        if (!pattern_has(in, i)) continue;
        w->p = start;
        memset(&one, 0, sizeof one);
        pattern_put(&one, i, true);
        pattern_alternatives(w, &one, &end);
        for (j = i; j <= w->length; j++) found |= pattern_has(&end, j);
        pattern_put(out, i, found == wanted);
    }
}

/* A group at w->p, behind its parenthesis. */
static void pattern_group(pattern_walk *w, const pattern_set *in, pattern_set *out)
{
    bool ahead = strncmp(w->p, "?=", 2) == 0 || strncmp(w->p, "?!", 2) == 0;
    memset(out, 0, sizeof *out);
    if (++w->depth > PATTERN_DEPTH) {
        pattern_fail(w);
        return;
    }
    if (ahead) {
        bool wanted = w->p[1] == '=';
        w->p += 2;
        pattern_ahead(w, wanted, in, out);
    } else {
        if (strncmp(w->p, "?:", 2) == 0) w->p += 2;
        else if (strncmp(w->p, "?P<", 3) == 0 && strchr(w->p, '>')) w->p = strchr(w->p, '>') + 1;
        else if (*w->p == '?') pattern_fail(w);
        pattern_alternatives(w, in, out);
    }
    w->depth--;
    if (*w->p == ')') w->p++;
    else pattern_fail(w);
}

/* What a quantifier can follow. */
static void pattern_atom(pattern_walk *w, const pattern_set *in, pattern_set *out)
{
    char c = *w->p;
    if (++w->steps > PATTERN_STEPS || c == '*' || c == '+' || c == '?' || c == '{') {
        memset(out, 0, sizeof *out);
        pattern_fail(w);
    } else if (c == '(') {
        w->p++;
        pattern_group(w, in, out);
    } else if (c == '^' || c == '$') {
        w->p++;
        pattern_anchor(w, c, in, out);
    } else if (c == '\\' && (w->p[1] == 'b' || w->p[1] == 'B')) {
        w->p += 2;
        pattern_anchor(w, w->p[-1], in, out);
    } else pattern_character(w, in, out);
}

/* A number of a {m,n}; `absent` where there is none. */
static uint32_t pattern_number(pattern_walk *w, uint32_t absent)
{
    uint32_t value = 0;
    if (*w->p < '0' || *w->p > '9') return absent;
    for (; *w->p >= '0' && *w->p <= '9' && value < PATTERN_MANY; w->p++) value = value * 10 + (uint32_t)(*w->p - '0');
    return value;
}

/* How often the atom before w->p may stand there. */
static void pattern_count(pattern_walk *w, uint32_t *least, uint32_t *most)
{
    *least = *w->p == '*' || *w->p == '?' ? 0 : 1;
    *most = *w->p == '*' || *w->p == '+' ? PATTERN_MANY : 1;
    if (*w->p == '{') {
        w->p++;
        *least = pattern_number(w, 0);
        *most = *least;
        if (*w->p == ',') {
            w->p++;
            *most = pattern_number(w, PATTERN_MANY);
        }
        if (*w->p != '}' || *most < *least) pattern_fail(w);
    } else if (*w->p != '*' && *w->p != '+' && *w->p != '?') return;
    if (!w->failed) w->p++;
    if (*w->p == '?') w->p++;       /* lazy: the same places */
    else if (*w->p == '+') pattern_fail(w); /* possessive */
}

/* Adds `more` to `all`. False when it brings nothing new. */
static bool pattern_add(const pattern_walk *w, pattern_set *all, const pattern_set *more)
{
    bool grown = false;
    size_t i;
    for (i = 0; i <= w->length / 8; i++) {
        grown |= (more->bits[i] & ~all->bits[i]) != 0;
        all->bits[i] |= more->bits[i];
    }
    return grown;
}

/* An atom with its quantifier. */
static void pattern_piece(pattern_walk *w, const pattern_set *in, pattern_set *out)
{
    const char *start = w->p, *end;
    pattern_set now, next;
    uint32_t least, most, i;
    bool grown = true;
    pattern_atom(w, in, &next);
    pattern_count(w, &least, &most);
    end = w->p;
    memset(out, 0, sizeof *out);
    now = *in;
    for (i = 0; i < least && !w->failed; i++) {
        w->p = start;
        pattern_atom(w, &now, &next);
        now = next;
    }
    pattern_add(w, out, &now);
    for (; i < most && grown && !w->failed; i++) {
        w->p = start;
        pattern_atom(w, &now, &next);
        grown = pattern_add(w, out, &next);
        now = next;
    }
    if (!w->failed) w->p = end;
}

static void pattern_sequence(pattern_walk *w, const pattern_set *in, pattern_set *out)
{
    pattern_set next;
    *out = *in;
    while (*w->p && *w->p != '|' && *w->p != ')') {
        pattern_piece(w, out, &next);
        *out = next;
    }
}

static void pattern_alternatives(pattern_walk *w, const pattern_set *in, pattern_set *out)
{
    pattern_set one;
    pattern_sequence(w, in, out);
    while (*w->p == '|') {
        w->p++;
        pattern_sequence(w, in, &one);
        pattern_add(w, out, &one);
    }
}

typedef enum pattern_start {
    PATTERN_WHOLE, /* the whole text, as re.fullmatch */
    PATTERN_TAIL   /* the whole text or what follows one of its dots: "(.*\.)?(PATTERN)$" */
} pattern_start;

/* False: the pattern is not known here. */
static bool pattern_match(const char *pattern, const char *text, pattern_start start, bool *matches)
{
    pattern_walk w = { NULL, NULL, 0, 0, 0, false };
    pattern_set in, out;
    size_t i;
    w.p = pattern;
    w.text = text;
    w.length = strlen(text);
    if (w.length > PATTERN_TEXT) return false;
    memset(&in, 0, sizeof in);
    pattern_put(&in, 0, true);
    for (i = 0; i < w.length && start == PATTERN_TAIL; i++)
        pattern_put(&in, i + 1, text[i] == '.');
    pattern_alternatives(&w, &in, &out);
    *matches = !w.failed && pattern_has(&out, w.length);
    return !w.failed && *w.p == 0;
}

#endif
