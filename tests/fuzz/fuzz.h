/* fuzz.h - what all fuzz targets share: checks, memory that is counted, input cut in parts, a main() for replaying.
 *
 * A target is one source with LLVMFuzzerTestOneInput(), built by tests/fuzz.sh. Without libFuzzer, FUZZ_MAIN makes a
 * program of it that runs the files and folders it is given, with any compiler:
 *
 *     cc -std=c99 -D_DEFAULT_SOURCE -I. -DFUZZ_MAIN -o json tests/fuzz/json.c -lm && ./json tests/fuzz/corpus/json */
#ifndef FUZZ_H
#define FUZZ_H

#include <dirent.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FUZZ_COUNTS 1
#endif
#endif
#if defined(FUZZ_COUNTS)
#include <sanitizer/allocator_interface.h>
#endif

#define FUZZ_UNUSED __attribute__((unused))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
const char *__asan_default_options(void);

/* Small numbers of freed blocks kept and no stacks of allocations: several times faster. */
FUZZ_UNUSED const char *__asan_default_options(void)
{
    return "quarantine_size_mb=2:thread_local_quarantine_size_kb=64:malloc_context_size=2:allocator_may_return_null=1";
}

/* What the input breaks is found like a crash. */
static void fuzz_fail(const char *what, const char *file, int line)
{
    fprintf(stderr, "%s:%d: FUZZ_CHECK failed: %s\n", file, line, what);
    abort();
}

#define FUZZ_CHECK(condition) ((condition) ? (void)0 : fuzz_fail(#condition, __FILE__, __LINE__))

/* ---- memory: its peak is in proportion to the input -------------------------------------------------- */

/* Of this thread: libFuzzer's own, which watches the resident size, takes blocks at any time. */
static __thread struct {
    size_t now, peak;
    bool counts, hooked;
} fuzz_memory;

#if defined(FUZZ_COUNTS)
static void fuzz_on_alloc(const volatile void *p, size_t size)
{
    (void)p;
    if (!fuzz_memory.counts) return;
    fuzz_memory.now += size;
    if (fuzz_memory.now > fuzz_memory.peak) fuzz_memory.peak = fuzz_memory.now;
}

static void fuzz_on_free(const volatile void *p)
{
    size_t size;
    if (!fuzz_memory.counts || !p) return;
    size = __sanitizer_get_allocated_size((const void *)(uintptr_t)p);
    fuzz_memory.now -= size < fuzz_memory.now ? size : fuzz_memory.now;
}
#endif

/* From here on every block counts, whoever takes it. */
FUZZ_UNUSED static void fuzz_memory_begin(void)
{
#if defined(FUZZ_COUNTS)
    if (!fuzz_memory.hooked) __sanitizer_install_malloc_and_free_hooks(fuzz_on_alloc, fuzz_on_free);
#endif
    fuzz_memory.hooked = true;
    fuzz_memory.now = fuzz_memory.peak = 0;
    fuzz_memory.counts = true;
}

FUZZ_UNUSED static void fuzz_memory_end(size_t most)
{
    fuzz_memory.counts = false;
    if (fuzz_memory.peak > most) fprintf(stderr, "%zu bytes taken, %zu allowed\n", fuzz_memory.peak, most);
    FUZZ_CHECK(fuzz_memory.peak <= most);
}

/* Blocks of exactly the size asked for, which a sanitizer watches to the byte. */
FUZZ_UNUSED static void *fuzz_alloc(void *user, size_t size, size_t align)
{
    void *block;
    (void)user;
    return posix_memalign(&block, align < sizeof block ? sizeof block : align, size) == 0 ? block : NULL;
}

FUZZ_UNUSED static void fuzz_free(void *user, void *block, size_t size)
{
    (void)user;
    (void)size;
    free(block);
}

/* ---- input ------------------------------------------------------------------------------------------ */

/* Bytes that are taken from the front; 0 when there are none left. */
typedef struct fuzz_input {
    const uint8_t *p;
    size_t left;
} fuzz_input;

FUZZ_UNUSED static uint8_t fuzz_u8(fuzz_input *in)
{
    if (in->left == 0) return 0;
    in->left--;
    return *in->p++;
}

FUZZ_UNUSED static uint32_t fuzz_u32(fuzz_input *in)
{
    uint32_t value = fuzz_u8(in);
    int i;
    for (i = 1; i < 4; i++) value = value << 8 | fuzz_u8(in);
    return value;
}

/* A copy of bytes with a zero behind them, of exactly that size. free() it. */
FUZZ_UNUSED static char *fuzz_string(const uint8_t *p, size_t size)
{
    char *copy = (char *)malloc(size + 1);
    FUZZ_CHECK(copy != NULL);
    if (size) memcpy(copy, p, size);
    copy[size] = 0;
    return copy;
}

/* Runs the input, with FUZZ_MENDS after its hash has been set right in a copy. */
FUZZ_UNUSED static void fuzz_mended(const uint8_t *data, size_t size, void (*mend)(uint8_t *data, size_t size),
    void (*run)(const uint8_t *data, size_t size))
{
#if defined(FUZZ_MENDS)
    uint8_t *copy = (uint8_t *)malloc(size ? size : 1);
    FUZZ_CHECK(copy != NULL);
    if (size) memcpy(copy, data, size);
    mend(copy, size);
    run(copy, size);
    free(copy);
#else
    (void)mend;
    run(data, size);
#endif
}

/* Files in one input: behind 0xff 0xfe and its number stands each, up to the next one. */
enum { FUZZ_PART_MARK = 3 };

/* How many bytes stand in front of the next one. */
FUZZ_UNUSED static size_t fuzz_part_size(const uint8_t *data, size_t size)
{
    const uint8_t *p = data, *end = data + size;
    while (end - p >= FUZZ_PART_MARK && (p = (const uint8_t *)memchr(p, 0xff, (size_t)(end - p))) != NULL) {
        if (end - p >= FUZZ_PART_MARK && p[1] == 0xfe) return (size_t)(p - data);
        p++;
    }
    return size;
}

FUZZ_UNUSED static bool fuzz_next_part(fuzz_input *in, int *number, const uint8_t **data, size_t *size)
{
    size_t skipped = fuzz_part_size(in->p, in->left);
    if (in->left - skipped < FUZZ_PART_MARK) return false;
    *number = in->p[skipped + 2];
    *data = in->p += skipped + FUZZ_PART_MARK;
    in->left -= skipped + FUZZ_PART_MARK;
    *size = fuzz_part_size(in->p, in->left);
    in->p += *size;
    in->left -= *size;
    return true;
}

/* ---- a program without libFuzzer ---------------------------------------------------------------------- */

#if defined(FUZZ_MAIN)
static int fuzz_run_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data = NULL;
    size_t size = 0, room = 0, got = 1;
    for (; file && got > 0; size += got) {
        if (room - size < 4096) data = (uint8_t *)realloc(data, room = 2 * room + 8192);
        got = fread(data + size, 1, room - size, file);
    }
    if (!file) {
        fprintf(stderr, "%s: cannot read\n", path);
        exit(1);
    }
    fclose(file);
    data = (uint8_t *)realloc(data, size ? size : 1);
    LLVMFuzzerTestOneInput(data, size);
    free(data);
    return 1;
}

static int fuzz_run_path(const char *path)
{
    DIR *dir = opendir(path);
    const struct dirent *entry;
    char name[1024];
    int count = 0;
    if (!dir) return fuzz_run_file(path);
    while ((entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] == '.') continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        count += fuzz_run_file(name);
    }
    closedir(dir);
    return count;
}

/* Which mutators name. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size)
{
    (void)data;
    return size < max_size ? size : max_size;
}

#pragma weak LLVMFuzzerInitialize
int main(int argc, char **argv)
{
    int i, count = 0;
    if (LLVMFuzzerInitialize) LLVMFuzzerInitialize(&argc, &argv);
    for (i = 1; i < argc; i++) count += fuzz_run_path(argv[i]);
    printf("%d inputs\n", count);
    return count ? 0 : 1;
}
#endif

#endif
