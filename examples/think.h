/* think.h - finds what a reasoning model writes between <think> and </think> in a stream of text
 *
 *     think_filter filter = { THINK_DIM };
 *     think_text(&filter, text, length, print);    for each piece of the reply
 *     think_end(&filter, print);                   after the last one
 *
 * Tags may be split over pieces; a beginning of a tag is held back until it is one, or not. Hidden text, its
 * tags and the blank lines after it are left out; dimmed text stands between the terminal's codes for it.
 */
#ifndef THINK_H
#define THINK_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

typedef enum think_mode { THINK_SHOW, THINK_DIM, THINK_HIDE } think_mode;

typedef struct think_filter {
    think_mode mode;
    bool inside, after; /* after: nothing but blank lines since the end of hidden text */
    size_t held;        /* bytes of the awaited tag seen */
} think_filter;

/* `code`: a terminal sequence of this file, not the model's text. */
typedef void (*think_print)(const char *text, size_t length, bool code);

static inline const char *think_tag(const think_filter *f)
{
    return f->inside ? "</think>" : "<think>";
}

/* Text that is no tag; a piece stays in one piece, so that characters do. */
static inline void think_out(think_filter *f, const char *text, size_t length, think_print print)
{
    if (f->mode == THINK_HIDE && f->inside) return;
    if (f->mode == THINK_HIDE && f->after)
        for (; length > 0 && *text == '\n'; length--) text++;
    if (length == 0) return;
    f->after = false;
    print(text, length, false);
}

/* The tag is complete: go in, or out. */
static inline void think_turn(think_filter *f, think_print print)
{
    f->held = 0;
    f->inside = !f->inside;
    f->after = !f->inside;
    if (f->mode == THINK_DIM) print(f->inside ? "\x1b[2m" : "\x1b[0m", 4, true);
}

/* What was held back is no tag: text after all. */
static inline void think_release(think_filter *f, think_print print)
{
    size_t held = f->held;
    f->held = 0;
    think_out(f, think_tag(f), held, print);
}

static inline void think_text(think_filter *f, const char *text, size_t length, think_print print)
{
    size_t i = 0, start;
    if (f->mode == THINK_SHOW) {
        print(text, length, false);
        return;
    }
    while (i < length) {
        for (start = i; f->held == 0 && i < length && text[i] != '<'; i++) {}
        think_out(f, text + start, i - start, print);
        if (i == length) return;
        if (text[i] != think_tag(f)[f->held]) {
            think_release(f, print);
            continue;
        }
        i++;
        if (think_tag(f)[++f->held] == 0) think_turn(f, print);
    }
}

static inline void think_end(think_filter *f, think_print print)
{
    think_release(f, print);
    if (f->mode == THINK_DIM && f->inside) print("\x1b[0m", 4, true);
    f->inside = f->after = false;
}

#endif /* THINK_H */
