/* machine.h - the machine under a benchmark: the CPU's name, memory, and the limits of what it can do
 *
 *     machine_limits limits;
 *     machine_limits_start(&limits, executor, isa)     takes the buffer
 *     machine_limits_measure(&limits)                  some times, between what is to be compared with it
 *     machine_limits_stop(&limits)                     gives the buffer back; the figures stay
 *
 * Every measurement lasts milliseconds and the best one counts, as others may use the machine as well.
 */
#ifndef MACHINE_H
#define MACHINE_H

#include "tool.h"

/* ---- the CPU's name ------------------------------------------------------------------------ */

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#include <cpuid.h>

static void machine_read_name(char name[128])
{
    unsigned registers[12], highest = __get_cpuid_max(0x80000000u, NULL);
    if (highest < 0x80000004u) return;
    for (unsigned i = 0; i < 3; i++) {
        unsigned *r = registers + 4 * i;
        __get_cpuid(0x80000002u + i, &r[0], &r[1], &r[2], &r[3]);
    }
    memcpy(name, registers, sizeof registers);
    name[sizeof registers] = 0;
}
#else
/* Linux: the first line of /proc/cpuinfo that names a processor or board. */
static void machine_read_name(char name[128])
{
    static const char *const keys[] = { "model name", "Model", "cpu model", "Hardware", "uarch", "cpu" };
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file && !name[0] && fgets(line, sizeof line, file)) {
        const char *colon = strchr(line, ':');
        for (size_t i = 0; colon && i < sizeof keys / sizeof *keys; i++) {
            size_t length = strlen(keys[i]);
            if (strncmp(line, keys[i], length) == 0 && line + length + strspn(line + length, " \t") == colon)
                snprintf(name, 128, "%s", colon + 1);
        }
    }
    if (file) fclose(file);
}
#endif

/* Printable ASCII, single blanks. */
JMB_UNUSED static void machine_cpu_name(char name[128])
{
    char *to = name;
    name[0] = 0;
    machine_read_name(name);
    for (const char *from = name; *from; from++) {
        bool blank = *from <= ' ' || *from > '~';
        if (!blank) *to++ = *from;
        else if (to > name && to[-1] != ' ') *to++ = ' ';
    }
    if (to > name && to[-1] == ' ') to--;
    *to = 0;
    if (!*name) strcpy(name, "unknown");
}

/* ---- memory -------------------------------------------------------------------------------- */

/* Bytes of physical memory; 0 where the system does not tell. */
JMB_UNUSED static uint64_t machine_memory(void)
{
#if defined(_SC_PHYS_PAGES)
    long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    return pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size : 0;
#else
    return 0;
#endif
}

/* Resident bytes of this process that are no file's pages; false where the system does not tell. */
JMB_UNUSED static bool machine_resident(uint64_t *bytes)
{
#if defined(__linux__)
    unsigned long long size, resident, shared;
    FILE *file = fopen("/proc/self/statm", "r");
    bool ok = file && fscanf(file, "%llu %llu %llu", &size, &resident, &shared) == 3;
    if (file) fclose(file);
    if (ok) *bytes = (uint64_t)(resident - shared) * (uint64_t)sysconf(_SC_PAGESIZE);
    return ok;
#else
    (void)bytes;
    return false;
#endif
}

/* ---- int8 products: register-only loops ------------------------------------------------------ */

enum { MACHINE_ROUNDS = 300000, MACHINE_SUMS = 10 };

/* Runs ROUNDS rounds and returns the operations done, a product and its addition being two. `sink` keeps
 * the compiler from leaving it all out. */
typedef double (*machine_peak_fn)(volatile int32_t *sink);

/* Keeps a value in a register and as if it changed here, so that products of the same numbers stay in the loop. */
#define MACHINE_HOLD(registers, value) __asm__ volatile("" : "+" registers(value))

/* Sums enough for the latency of two instructions a cycle, and few enough for 16 registers. */
#define MACHINE_EACH_SUM(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9)

/* A loop over `STEP(i)`, which adds products of w to sum_i; `wide` operations in each. */
#define MACHINE_PEAK(name, target, vector, value, STEP, wide)                           \
    target static double name(volatile int32_t *sink)                                   \
    {                                                                                   \
        vector w = value(3), sum_0 = value(0), sum_1 = sum_0, sum_2 = sum_0;            \
        vector sum_3 = sum_0, sum_4 = sum_0, sum_5 = sum_0, sum_6 = sum_0;              \
        vector sum_7 = sum_0, sum_8 = sum_0, sum_9 = sum_0;                             \
        int32_t lane, all = 0;                                                          \
        for (int round = 0; round < MACHINE_ROUNDS; round++) { MACHINE_EACH_SUM(STEP) } \
        MACHINE_EACH_SUM(MACHINE_FOLD)                                                  \
        *sink = all;                                                                    \
        return (double)MACHINE_ROUNDS * MACHINE_SUMS * (wide);                          \
    }
#define MACHINE_FOLD(i) memcpy(&lane, &sum_##i, 4), all ^= lane;

#if JMB_X86_KERNELS
#define MACHINE_STEP(i) sum_##i = _mm512_dpbusd_epi32(sum_##i, w, w); MACHINE_HOLD("v", sum_##i);
MACHINE_PEAK(machine_peak_avx512, JMB_TARGET("avx512f,avx512vnni"), __m512i, _mm512_set1_epi8, MACHINE_STEP, 128)
#undef MACHINE_STEP

#if JMB_AVXVNNI_KERNELS
#define MACHINE_STEP(i) sum_##i = _mm256_dpbusd_avx_epi32(sum_##i, w, w); MACHINE_HOLD("x", sum_##i);
MACHINE_PEAK(machine_peak_avxvnni, JMB_TARGET("avx2,avxvnni"), __m256i, _mm256_set1_epi8, MACHINE_STEP, 64)
#undef MACHINE_STEP
#endif

/* The shortest way without VNNI: products of bytes added to 16 bits, those to 32, an addition. */
#define MACHINE_PAIRS(bytes) _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, bytes), _mm256_set1_epi16(1))
#define MACHINE_STEP(i) \
    MACHINE_HOLD("x", w); sum_##i = _mm256_add_epi32(sum_##i, MACHINE_PAIRS(w)); MACHINE_HOLD("x", sum_##i);
MACHINE_PEAK(machine_peak_avx2, JMB_TARGET("avx2"), __m256i, _mm256_set1_epi8, MACHINE_STEP, 64)
#undef MACHINE_STEP
#endif

#if JMB_NEON_KERNELS
#if defined(__clang__)
#define MACHINE_ARM(extension) JMB_TARGET(extension)
#else
#define MACHINE_ARM(extension) JMB_TARGET("arch=armv8.2-a+" extension)
#endif

/* In int32x4_t, so that w and the sums have one type. */
#define MACHINE_BYTES(value) vreinterpretq_s8_s32(value)
#define MACHINE_SET(x) vreinterpretq_s32_s8(vdupq_n_s8(x))
#define MACHINE_STEP(i) sum_##i = vdotq_s32(sum_##i, MACHINE_BYTES(w), MACHINE_BYTES(w)); MACHINE_HOLD("w", sum_##i);
MACHINE_PEAK(machine_peak_dotprod, MACHINE_ARM("dotprod"), int32x4_t, MACHINE_SET, MACHINE_STEP, 32)
#undef MACHINE_STEP

#if JMB_I8MM_KERNELS
/* Two rows of eight bytes times two: each of the four sums takes eight products. */
#define MACHINE_STEP(i)                                                         \
    sum_##i = vusmmlaq_s32(sum_##i, vreinterpretq_u8_s32(w), MACHINE_BYTES(w)); \
    MACHINE_HOLD("w", sum_##i);
MACHINE_PEAK(machine_peak_i8mm, MACHINE_ARM("i8mm"), int32x4_t, MACHINE_SET, MACHINE_STEP, 64)
#undef MACHINE_STEP
#endif

#define MACHINE_LOW(value) vget_low_s8(MACHINE_BYTES(value))
#define MACHINE_STEP(i)                                                                       \
    MACHINE_HOLD("w", w);                                                                     \
    sum_##i = vpadalq_s16(sum_##i, vmull_s8(MACHINE_LOW(w), MACHINE_LOW(w)));                 \
    sum_##i = vpadalq_s16(sum_##i, vmull_high_s8(MACHINE_BYTES(w), MACHINE_BYTES(w)));        \
    MACHINE_HOLD("w", sum_##i);
MACHINE_PEAK(machine_peak_neon, , int32x4_t, MACHINE_SET, MACHINE_STEP, 32)
#undef MACHINE_STEP
#endif

/* The loop for an instruction set, by the name of its kernels; NULL: there is none. */
static machine_peak_fn machine_peak_of(const char *isa)
{
#if JMB_X86_KERNELS
    if (strcmp(isa, "avx512") == 0) return machine_peak_avx512;
    if (strcmp(isa, "avx2") == 0) return machine_peak_avx2;
#if JMB_AVXVNNI_KERNELS
    if (strcmp(isa, "avx-vnni") == 0) return machine_peak_avxvnni;
#endif
#elif JMB_NEON_KERNELS
#if JMB_I8MM_KERNELS
    if (strcmp(isa, "neon-i8mm") == 0) return machine_peak_i8mm;
#endif
    if (strcmp(isa, "neon-dotprod") == 0) return machine_peak_dotprod;
    if (strcmp(isa, "neon") == 0) return machine_peak_neon;
#endif
    (void)isa;
    return NULL;
}

/* ---- limits -------------------------------------------------------------------------------- */

/* A part of a thread's share in one measurement of reading, and measurements in one round. */
enum { MACHINE_PARTS = 8, MACHINE_SLICES = 3, MACHINE_STREAMS = 4 };

typedef struct machine_limits {
    double read_1, read_4; /* bytes a second, all threads together, each with one stream or with four */
    double int8;           /* int8 operations a second, likewise; 0: not measured */
    jamba_executor executor;
    machine_peak_fn peak;
    uint8_t *buffer;
    size_t share;  /* bytes a thread, the same number of lines in each part of each stream */
    unsigned part; /* read next */
    double peak_work; /* of one thread, as its loop said last */
} machine_limits;

#if defined(__clang__)
#define MACHINE_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define MACHINE_UNROLL _Pragma("GCC unroll 4")
#else
#define MACHINE_UNROLL
#endif

#if defined(__GNUC__) || defined(__clang__)
typedef uint64_t machine_lane __attribute__((vector_size(16)));
#else
typedef uint64_t machine_lane;
#endif

/* XOR of what lies at `streams` places, `step` apart: nothing but loads, and four chains. */
JMB_INLINE void machine_read(const machine_limits *l, int index, const int streams)
{
    size_t step = l->share / (size_t)streams / sizeof(machine_lane), count = step / MACHINE_PARTS;
    const machine_lane *from = (const machine_lane *)(void *)(l->buffer + (size_t)index * l->share) + l->part * count;
    machine_lane a = from[0], b = a, c = a, d = a;
    volatile machine_lane sink;
    for (size_t at = 0; at < count; at += 4) {
        MACHINE_UNROLL
        for (int s = 0; s < streams; s++) {
            const machine_lane *p = from + (size_t)s * step + at;
            a ^= p[0];
            b ^= p[1];
            c ^= p[2];
            d ^= p[3];
        }
    }
    sink = a ^ b ^ c ^ d;
    (void)sink;
}

static void machine_read_1(void *ctx, int index)
{
    machine_read((const machine_limits *)ctx, index, 1);
}

static void machine_read_4(void *ctx, int index)
{
    machine_read((const machine_limits *)ctx, index, MACHINE_STREAMS);
}

static void machine_multiply(void *ctx, int index)
{
    machine_limits *l = (machine_limits *)ctx;
    volatile int32_t sink;
    double work = l->peak(&sink);
    if (index == 0) l->peak_work = work;
}

/* Seconds of one task on every thread. */
static double machine_time(machine_limits *l, jamba_task_fn task)
{
    double start = tool_seconds();
    if (l->executor.run) l->executor.run(l->executor.user, l->executor.width, task, l);
    else task(l, 0);
    return tool_seconds() - start;
}

static void machine_keep_best(double *best, double work, double seconds)
{
    if (seconds > 0 && work / seconds > *best) *best = work / seconds;
}

JMB_UNUSED static void machine_limits_measure(machine_limits *l)
{
    double read = (double)l->share / MACHINE_PARTS * l->executor.width, seconds;
    for (int i = 0; i < MACHINE_SLICES; i++) {
        machine_keep_best(&l->read_1, read, machine_time(l, machine_read_1));
        machine_keep_best(&l->read_4, read, machine_time(l, machine_read_4));
        l->part = (l->part + 1) % MACHINE_PARTS;
        if (!l->peak) continue;
        seconds = machine_time(l, machine_multiply);
        machine_keep_best(&l->int8, l->peak_work * l->executor.width, seconds);
    }
}

/* The buffer is far larger than caches: 1 GiB, or a quarter of the memory where that is less, or what there is.
 * False: less than 64 MiB. */
JMB_UNUSED static bool machine_limits_start(machine_limits *l, const jamba_executor *executor, const char *isa)
{
    enum { GRAIN = 64 * MACHINE_PARTS * MACHINE_STREAMS };
    const uint64_t least = (uint64_t)1 << 26, width = (uint64_t)executor->width, memory = machine_memory();
    uint64_t size = (uint64_t)1 << 30;
    memset(l, 0, sizeof *l);
    l->executor = *executor;
    l->peak = machine_peak_of(isa);
    if (memory && memory / 4 < size) size = memory / 4;
    for (; size >= least; size /= 2) {
        l->share = (size_t)(size / width / GRAIN * GRAIN);
        l->buffer = (uint8_t *)jmb_default_alloc(NULL, l->share * (size_t)width, JMB_ALIGN);
        if (!l->buffer) continue;
        memset(l->buffer, 0x5a, l->share * (size_t)width); /* untouched pages are all one page of zeros */
        return true;
    }
    return false;
}

JMB_UNUSED static void machine_limits_stop(machine_limits *l)
{
    if (l->buffer) jmb_default_free(NULL, l->buffer, 0);
    l->buffer = NULL;
}

#endif
