/* tool.h - what all tools share: errors, arguments, files, buffers, progress.
 *
 * Parsers return false with a filled tool_error and never exit; only main() and the tool_argument
 * functions do. Exit status: 0 done, 1 failed (one line on stderr), 2 wrong usage.
 */
#ifndef TOOL_H
#define TOOL_H

/* -std=c99 makes sums of floats double there: weights would be rounded twice, and the file would be another one. */
#if defined(__s390__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("excess-precision=fast")
#endif

#if defined(_WIN32)
#define __USE_MINGW_ANSI_STDIO 1 /* %zu */
#endif
#ifndef JAMBA_H
#define JAMBA_IMPLEMENTATION
#define JAMBA_STATIC
#include "jamba.h"
#endif

#include <errno.h>
#include <limits.h>
#include <locale.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(_WIN32)
#include "posix.h"
#endif

#if defined(__MINGW32__)
#define TOOL_FORMAT gnu_printf
#else
#define TOOL_FORMAT printf
#endif
#if defined(__GNUC__) || defined(__clang__)
#define TOOL_PRINTF(text, first) __attribute__((format(TOOL_FORMAT, text, first)))
#define TOOL_NORETURN __attribute__((noreturn))
#else
#define TOOL_PRINTF(text, first)
#define TOOL_NORETURN
#endif

/* ---- errors -------------------------------------------------------------------------------- */

typedef struct tool_error {
    char message[2400]; /* a path, a tensor's name of 1,024 bytes, and what is the matter with them */
} tool_error;

/* Bytes of the control character (C0, DEL, or C1 in UTF-8) that text begins with; 0: it begins with none. Names and
 * texts come from untrusted files and models, and would otherwise reach the terminal as commands. */
JMB_UNUSED static size_t tool_control_size(const char *text, size_t length)
{
    const unsigned char *p = (const unsigned char *)text;
    if (length > 1 && p[0] == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0) return 2;
    return length > 0 && (p[0] < 0x20 || p[0] == 0x7f);
}

/* Replaces control characters, so that text is one line. */
JMB_UNUSED static void tool_clean_text(char *text)
{
    size_t length = strlen(text);
    while (length > 0) {
        size_t size = tool_control_size(text, length), step = size ? size : 1;
        memset(text, '?', size);
        text += step;
        length -= step;
    }
}

/* On standard output, without control characters but newlines and tabs. */
JMB_UNUSED static void tool_print_text(const char *text, size_t length)
{
    while (length > 0) {
        size_t size = *text == '\n' || *text == '\t' ? 0 : tool_control_size(text, length), step = size ? size : 1;
        if (size == 0) putchar((unsigned char)*text);
        text += step;
        length -= step;
    }
}

/* In quotes, on standard output. */
JMB_UNUSED static void tool_print_json_string(const char *text)
{
    putchar('"');
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p == '"' || *p == '\\') printf("\\%c", *p);
        else if (*p < 0x20 || *p == 0x7f) printf("\\u%04x", *p);
        else putchar(*p);
    }
    putchar('"');
}

TOOL_PRINTF(2, 3)
JMB_UNUSED static void tool_error_fill(tool_error *error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(error->message, sizeof error->message, format, args);
    va_end(args);
    tool_clean_text(error->message);
}

/* The same, and false, so that a failure is one line. A macro as jmb_fail is, and for the same reason. */
#define tool_error_set(error, ...) (tool_error_fill(error, __VA_ARGS__), false)

JMB_UNUSED static bool tool_no_memory(tool_error *error)
{
    return tool_error_set(error, "out of memory");
}

/* One line on stderr, exit 1. */
TOOL_PRINTF(2, 3)
TOOL_NORETURN JMB_UNUSED static void tool_die(const char *tool, const char *format, ...)
{
    tool_error error;
    va_list args;
    va_start(args, format);
    vsnprintf(error.message, sizeof error.message, format, args);
    va_end(args);
    tool_clean_text(error.message);
    fprintf(stderr, "%s: %s\n", tool, error.message);
    exit(1);
}

/* Wrong usage: what is wrong and the usage text on stderr, exit 2. */
TOOL_NORETURN JMB_UNUSED static void tool_usage(
    const char *tool, const char *usage, const char *problem, const char *argument)
{
    char clean[256];
    snprintf(clean, sizeof clean, "%s", argument ? argument : "");
    tool_clean_text(clean);
    fprintf(stderr, "%s: %s%s%s\n%s", tool, problem, argument ? " " : "", clean, usage);
    exit(2);
}

/* ---- arguments ----------------------------------------------------------------------------- */

/* A whole decimal integer in [low, high], nothing else. */
JMB_UNUSED static bool tool_parse_int(const char *text, int64_t low, int64_t high, int64_t *out)
{
    char *end;
    long long value;
    if (!((*text >= '0' && *text <= '9') || (*text == '-' && text[1] >= '0' && text[1] <= '9'))) return false;
    errno = 0;
    value = strtoll(text, &end, 10);
    if (*end || errno || value < low || value > high) return false;
    *out = value;
    return true;
}

/* A whole finite decimal number in [low, high]. Tools stay in the C locale, so the point is '.'. */
JMB_UNUSED static bool tool_parse_float(const char *text, double low, double high, double *out)
{
    char *end;
    double value;
    if (!*text || text[strspn(text, "0123456789+-.eE")]) return false;
    value = strtod(text, &end);
    if (*end || !(value >= low && value <= high)) return false;
    *out = value;
    return true;
}

/* The integer of option `name`, or usage failure. `text` may be NULL: the argument is missing. */
JMB_UNUSED static int64_t tool_argument_int(
    const char *tool, const char *usage, const char *name, const char *text, int64_t low, int64_t high)
{
    int64_t value = 0;
    char problem[160];
    snprintf(problem, sizeof problem, "%s needs an integer from %lld to %lld, not", name, (long long)low,
        (long long)high);
    if (!text || !tool_parse_int(text, low, high, &value)) tool_usage(tool, usage, problem, text ? text : "nothing");
    return value;
}

JMB_UNUSED static double tool_argument_float(
    const char *tool, const char *usage, const char *name, const char *text, double low, double high)
{
    double value = 0;
    char problem[160];
    snprintf(problem, sizeof problem, "%s needs a number from %g to %g, not", name, low, high);
    if (!text || !tool_parse_float(text, low, high, &value)) tool_usage(tool, usage, problem, text ? text : "nothing");
    return value;
}

/* ---- figures ------------------------------------------------------------------------------- */

JMB_UNUSED static int tool_compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

JMB_UNUSED static void tool_sort(double *values, size_t count)
{
    if (count > 0) qsort(values, count, sizeof *values, tool_compare);
}

/* The value that `share` of the sorted ones do not exceed. */
JMB_UNUSED static double tool_percentile(const double *sorted, size_t count, double share)
{
    size_t at = (size_t)(share * (double)count);
    return sorted[at < count ? at : count - 1];
}

/* Sorts them. */
JMB_UNUSED static double tool_median(double *values, size_t count)
{
    tool_sort(values, count);
    return tool_percentile(values, count, 0.5);
}

/* ---- a growing buffer ---------------------------------------------------------------------- */

/* All zero at the start. After a failed add every further one fails too, so that one check at the
 * end is enough. */
typedef struct tool_buffer {
    uint8_t *data;
    size_t size, capacity;
    bool failed;
} tool_buffer;

JMB_UNUSED static void tool_buffer_free(tool_buffer *buffer)
{
    free(buffer->data);
    memset(buffer, 0, sizeof *buffer);
}

JMB_UNUSED static bool tool_buffer_reserve(tool_buffer *buffer, size_t more)
{
    uint64_t need = jmb_add(buffer->size, more), capacity = jmb_mul(buffer->capacity, 2);
    uint8_t *data;
    if (buffer->failed) return false;
    if (need <= buffer->capacity) return true;
    if (capacity < 256) capacity = 256;
    if (capacity < need) capacity = need;
    data = capacity > SIZE_MAX / 2 ? NULL : (uint8_t *)realloc(buffer->data, (size_t)capacity);
    if (!data) {
        buffer->failed = true;
        return false;
    }
    buffer->data = data;
    buffer->capacity = (size_t)capacity;
    return true;
}

JMB_UNUSED static bool tool_buffer_add(tool_buffer *buffer, const void *bytes, size_t size)
{
    if (!tool_buffer_reserve(buffer, size)) return false;
    if (size > 0) memcpy(buffer->data + buffer->size, bytes, size);
    buffer->size += size;
    return true;
}

JMB_UNUSED static void tool_store_le(uint8_t *p, uint64_t value, int bytes)
{
    int i;
    for (i = 0; i < bytes; i++) p[i] = (uint8_t)(value >> (8 * i));
}

JMB_UNUSED static bool tool_buffer_u8(tool_buffer *buffer, uint8_t value)
{
    return tool_buffer_add(buffer, &value, 1);
}

JMB_UNUSED static bool tool_buffer_u16(tool_buffer *buffer, uint16_t value)
{
    uint8_t bytes[2];
    tool_store_le(bytes, value, 2);
    return tool_buffer_add(buffer, bytes, sizeof bytes);
}

JMB_UNUSED static bool tool_buffer_u32(tool_buffer *buffer, uint32_t value)
{
    uint8_t bytes[4];
    tool_store_le(bytes, value, 4);
    return tool_buffer_add(buffer, bytes, sizeof bytes);
}

JMB_UNUSED static bool tool_buffer_u64(tool_buffer *buffer, uint64_t value)
{
    uint8_t bytes[8];
    tool_store_le(bytes, value, 8);
    return tool_buffer_add(buffer, bytes, sizeof bytes);
}

/* Key and value pairs in the form of the model file's strings section. */
typedef struct tool_strings {
    tool_buffer bytes;
} tool_strings;

JMB_UNUSED static bool tool_strings_add(tool_strings *strings, const char *key, const char *value)
{
    size_t key_size = strlen(key), value_size = strlen(value);
    if (key_size > UINT32_MAX || value_size > UINT32_MAX) return false;
    tool_buffer_u32(&strings->bytes, (uint32_t)key_size);
    tool_buffer_u32(&strings->bytes, (uint32_t)value_size);
    tool_buffer_add(&strings->bytes, key, key_size);
    return tool_buffer_add(&strings->bytes, value, value_size);
}

/* ---- files --------------------------------------------------------------------------------- */

/* "dir/name" in a fresh allocation. */
JMB_UNUSED static char *tool_path_join(const char *dir, const char *name)
{
    size_t length = strlen(dir);
    const char *slash = length > 0 && dir[length - 1] == '/' ? "" : "/";
    char *path = (char *)malloc(length + strlen(name) + 2);
    if (path) {
        strcpy(path, dir);
        strcat(path, slash);
        strcat(path, name);
    }
    return path;
}

/* True also where the disk does not tell: what opens it then says why, and no file passes for one that is not there. */
JMB_UNUSED static bool tool_file_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

/* Reads a stream to its end, at most `limit` bytes. *data is followed by a 0 byte that does not
 * count, and is the caller's to free. `name` is for messages. */
JMB_UNUSED static bool tool_read_stream(
    FILE *stream, const char *name, size_t limit, uint8_t **data, size_t *size, tool_error *error)
{
    tool_buffer buffer = { NULL, 0, 0, false };
    while (buffer.size <= limit && !feof(stream) && !ferror(stream) && tool_buffer_reserve(&buffer, 1 << 16))
        buffer.size += fread(buffer.data + buffer.size, 1, 1 << 16, stream);
    if (buffer.failed) tool_no_memory(error);
    else if (ferror(stream)) tool_error_fill(error, "%s: cannot read: %s", name, strerror(errno));
    else if (buffer.size > limit) tool_error_fill(error, "%s: larger than %zu bytes", name, limit);
    else if (tool_buffer_u8(&buffer, 0)) {
        *data = buffer.data;
        *size = buffer.size - 1;
        return true;
    } else tool_no_memory(error);
    tool_buffer_free(&buffer);
    return false;
}

JMB_UNUSED static bool tool_read_file(const char *path, size_t limit, uint8_t **data, size_t *size, tool_error *error)
{
    struct stat info;
    bool ok;
    FILE *file = fopen(path, "rb");
    *data = NULL;
    *size = 0;
    if (!file) return tool_error_set(error, "%s: cannot open: %s", path, strerror(errno));
    if (fstat(fileno(file), &info) == 0 && S_ISDIR(info.st_mode)) {
        fclose(file);
        return tool_error_set(error, "%s: is a directory, not a file", path);
    }
    ok = tool_read_stream(file, path, limit, data, size, error);
    fclose(file);
    return ok;
}

/* ---- time and progress --------------------------------------------------------------------- */

/* Seconds of a monotonic clock. */
JMB_UNUSED static double tool_seconds(void)
{
    return (double)jmb_clock_us(NULL) * 1e-6;
}

/* One line on a terminal, redrawn at most ten times a second; silent in a pipe. All zero at the start. */
typedef struct tool_progress {
    double last;
    bool drawn;
} tool_progress;

JMB_UNUSED static void tool_progress_show(tool_progress *progress, const char *stage, uint64_t done, uint64_t total)
{
    double now;
    if (!isatty(2)) return;
    now = tool_seconds();
    if (progress->drawn && now - progress->last < 0.1) return;
    progress->last = now;
    progress->drawn = true;
    fprintf(stderr, "\r%s %5.1f %%\033[K", stage, total ? 100.0 * (double)done / (double)total : 100.0);
    fflush(stderr);
}

/* Wipes the line. */
JMB_UNUSED static void tool_progress_end(tool_progress *progress)
{
    if (progress->drawn) fprintf(stderr, "\r\033[K");
    progress->drawn = false;
}

#endif
