/* test.h - named tests, checks that report, one summary line. Include it first in a test program.
 *
 *     int main(int argc, char **argv)
 *     {
 *         test_start(argc, argv);
 *         if (test_begin("addition")) {
 *             CHECK(1 + 1 == 2);
 *             test_end();
 *         }
 *         return test_summary();
 *     }
 *
 * Options: --filter TEXT runs the tests whose name contains TEXT, --list only prints the names,
 * --verbose prints every name. The build folder is the one above the program's own, so that
 * build/tests/golden finds build/convert; the current folder is the top of the repository.
 */
#ifndef TEST_H
#define TEST_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#if defined(_WIN32)
#define __USE_MINGW_ANSI_STDIO 1 /* %zu */
#endif

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__MINGW32__)
#define TEST_UNUSED __attribute__((unused))
#define TEST_PRINTF(at) __attribute__((format(gnu_printf, at, at + 1)))
#elif defined(__GNUC__) || defined(__clang__)
#define TEST_UNUSED __attribute__((unused))
#define TEST_PRINTF(at) __attribute__((format(printf, at, at + 1)))
#else
#define TEST_UNUSED
#define TEST_PRINTF(at)
#endif

static struct {
    int passed, failed, skipped, checks_failed;
    bool list, verbose;
    const char *filter, *program;
    char build[200], name[200];
} test_state;

enum { TEST_REPORTS = 5 }; /* failed checks printed for one test */

static void test_start(int argc, char **argv)
{
    const char *slash;
    size_t length = 0;
    int i, up;
#if defined(_WIN32)
    for (i = 0; argv[0][i]; i++)
        if (argv[0][i] == '\\') argv[0][i] = '/';
#endif
    slash = strrchr(argv[0], '/');
    test_state.program = slash ? slash + 1 : argv[0];
    snprintf(test_state.build, sizeof test_state.build, "%s", argv[0]);
    for (up = 0; up < 2; up++) {
        char *end = strrchr(test_state.build, '/');
        length = end ? (size_t)(end - test_state.build) : 0;
        test_state.build[length] = 0;
    }
    if (length == 0) snprintf(test_state.build, sizeof test_state.build, "build");
    for (i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--filter") == 0 && i + 1 < argc) test_state.filter = argv[++i];
        else if (strcmp(argv[i], "--list") == 0) test_state.list = true;
        else if (strcmp(argv[i], "--verbose") == 0) test_state.verbose = true;
        else {
            fprintf(stderr, "usage: %s [--filter TEXT] [--list] [--verbose]\n", argv[0]);
            exit(2);
        }
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
}

/* Whether the test of this name is to run; if so, test_end() or test_skip() must follow. */
TEST_UNUSED TEST_PRINTF(1) static bool test_begin(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(test_state.name, sizeof test_state.name, format, args);
    va_end(args);
    if (test_state.filter && !strstr(test_state.name, test_state.filter)) return false;
    test_state.checks_failed = 0;
    if (test_state.list || test_state.verbose) printf("%s: %s\n", test_state.program, test_state.name);
    return !test_state.list;
}

TEST_UNUSED static void test_end(void)
{
    if (test_state.checks_failed > TEST_REPORTS)
        printf("  ... and %d more failed checks in %s\n", test_state.checks_failed - TEST_REPORTS, test_state.name);
    if (test_state.checks_failed) test_state.failed++;
    else test_state.passed++;
}

TEST_UNUSED static void test_skip(const char *why)
{
    printf("SKIP %s: %s (%s)\n", test_state.program, test_state.name, why);
    test_state.skipped++;
}

typedef struct named_test {
    const char *name;
    void (*run)(void);
} named_test;

TEST_UNUSED static void test_run(const named_test *tests, size_t count)
{
    size_t i;
    for (i = 0; i < count; i++) {
        if (!test_begin("%s", tests[i].name)) continue;
        tests[i].run();
        test_end();
    }
}

/* Counts and prints one failed check. Returns `ok`. */
TEST_UNUSED TEST_PRINTF(4) static bool test_check(bool ok, const char *file, int line, const char *format, ...)
{
    va_list args;
    if (ok || ++test_state.checks_failed > TEST_REPORTS) return ok;
    printf("FAIL %s: %s\n  %s:%d: ", test_state.program, test_state.name, file, line);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    return ok;
}

#define CHECK(condition) test_check(condition, __FILE__, __LINE__, "%s", #condition)
/* CHECK with a message of its own: a printf format and its arguments. */
#define CHECK_THAT(condition, ...) test_check(condition, __FILE__, __LINE__, __VA_ARGS__)

/* |got - want| <= bound; false for NaN. */
TEST_UNUSED static bool test_near(double got, double want, double bound)
{
    return fabs(got - want) <= bound;
}

#define CHECK_NEAR(got, want, bound)                                                                           \
    CHECK_THAT(test_near(got, want, bound), "%s is %.9g, not %.9g: off by %.3g, allowed %.3g", #got,           \
        (double)(got), (double)(want), fabs((double)(got) - (double)(want)), (double)(bound))

/* Largest |got - want| of two arrays; infinite where one is NaN. */
TEST_UNUSED static double test_worst(const float *got, const float *want, size_t count)
{
    double worst = 0;
    size_t i;
    for (i = 0; i < count; i++) {
        double error = fabs((double)got[i] - (double)want[i]);
        if (!(error <= worst)) worst = error == error ? error : (double)INFINITY;
    }
    return worst;
}

/* Something without which no test of the program makes sense; ends the program. */
TEST_UNUSED static void test_require(bool ok, const char *what, const char *detail)
{
    if (ok) return;
    printf("FAIL %s: %s: %s\n%d passed, %d failed\n", test_state.program, what, detail, test_state.passed,
        test_state.failed + 1);
    exit(1);
}

/* Prints the counts; the value is main's. A program that ran nothing has failed unless it was filtered. */
TEST_UNUSED static int test_summary(void)
{
    int ran = test_state.passed + test_state.failed + test_state.skipped;
    if (ran == 0 && !test_state.filter && !test_state.list) test_state.failed = 1;
    printf("%d passed, %d failed", test_state.passed, test_state.failed);
    if (test_state.skipped) printf(", %d skipped", test_state.skipped);
    printf("\n");
    return test_state.failed ? 1 : 0;
}

#endif
