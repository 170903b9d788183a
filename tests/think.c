/* Reasoning tags in a stream, cut at every place. */
#include "test.h"

#include "../examples/think.h"

static char printed[500];

static void keep(const char *text, size_t length, bool code)
{
    size_t used = strlen(printed);
    (void)code;
    memcpy(printed + used, text, length);
    printed[used + length] = 0;
}

/* Whether `text`, cut in two at every place, always gives `expected`. */
static bool gives(think_mode mode, const char *text, const char *expected)
{
    size_t length = strlen(text), cut;
    for (cut = 0; cut <= length; cut++) {
        think_filter filter = { THINK_SHOW, false, false, 0 };
        filter.mode = mode;
        printed[0] = 0;
        think_text(&filter, text, cut, keep);
        think_text(&filter, text + cut, length - cut, keep);
        think_end(&filter, keep);
        if (!CHECK_THAT(strcmp(printed, expected) == 0, "cut at %zu gives \"%s\"", cut, printed)) return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    static const char text[] = "a<think>b < c</thin></think>\n\nd<<think>e</think>f";
    test_start(argc, argv);
    if (test_begin("reasoning shown, dimmed, hidden")) {
        CHECK(gives(THINK_SHOW, text, text));
        CHECK(gives(THINK_DIM, text, "a\x1b[2mb < c</thin>\x1b[0m\n\nd<\x1b[2me\x1b[0mf"));
        CHECK(gives(THINK_HIDE, text, "ad<f"));
        CHECK(gives(THINK_HIDE, "<think>never ends", ""));
        CHECK(gives(THINK_DIM, "<think>never ends", "\x1b[2mnever ends\x1b[0m"));
        CHECK(gives(THINK_HIDE, "x <thi", "x <thi"));
        CHECK(gives(THINK_HIDE, "<th<think>y</think>z", "<thz"));
        CHECK(gives(THINK_DIM, "caf\xc3\xa9 <", "caf\xc3\xa9 <"));
        test_end();
    }
    return test_summary();
}
