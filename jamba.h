/* jamba.h - hybrid language models (attention, Mamba, mixture of experts) on a CPU, in one file
 *
 * MIT licence, text at the end of the file. C99; also compiles as C++11. Needs libc and libm.
 *
 * Do this in ONE .c or .cc file:
 *
 *     #define JAMBA_IMPLEMENTATION
 *     #include "jamba.h"
 *
 * and include it plainly everywhere else. No compiler flag is needed: kernels for each instruction set
 * are compiled in, and chosen when a model is loaded. Options, defined beside JAMBA_IMPLEMENTATION:
 *
 *     JAMBA_STATIC         every symbol is private to that file
 *     JAMBA_NO_SIMD        plain C kernels only: less code, the same results, slower
 *     JAMBA_NO_AVXVNNI     no AVX-VNNI kernels, for an assembler that does not know them
 *     JAMBA_HEADER_FILE    this file's name in quotes, if it is not "jamba.h" (it includes itself)
 *
 *     jamba_model *model;
 *     jamba_session *session;
 *     jamba_error error;
 *     if (jamba_model_load(&model, jamba_from_file("model.jamba"), NULL, &error)) puts(error.message);
 *     if (jamba_session_create(&session, model, NULL, &error)) puts(error.message);
 *     jamba_encode(model, text, strlen(text), JAMBA_TEXT_BOS, tokens, 512, &count, &error);
 *     jamba_eval(session, tokens, count);
 *     int32_t next = jamba_sample(session, NULL);
 *
 * CONTENTS (search for the tag)
 *     >>api >>config >>base >>platform >>hash >>format >>tokenizer >>chat >>plan >>lanes >>kernels
 *     >>dispatch >>layers >>model >>adapter >>session >>state >>sampler >>talk >>public
 *
 * jamba.h DOES NOT
 *     - print, exit, abort, read the environment, or keep a global;
 *     - start a thread (bring an executor, or compile with OpenMP);
 *     - know model families: a model file is a program of blocks, made by tools/convert;
 *     - interpret chat templates or regular expressions;
 *     - train, or run on a GPU.
 *
 * MEMORY   A model is the mapped file plus a few tables. A session is one allocation, and one for keys and values,
 *          whose sizes jamba_session_estimate() tells before; feeding, stepping, sampling, marks, saving and
 *          restoring from memory allocate nothing. What turns text into tokens does for as long as it runs (say,
 *          the opening of a reply, choose, which forks), and jamba_session_load() of what cannot be mapped;
 *          jamba_session_set_adapters() does to keep them.
 *          No call takes more than 32 KiB of stack, on whichever thread, beside what callbacks and libc take.
 * THREADS  A model is immutable: share it. A session belongs to one thread at a time.
 * ERRORS   Every call that can fail returns a jamba_result. A failed call changes nothing, but that
 *          JAMBA_ERR_ABORTED keeps the tokens done so far and JAMBA_PENDING is no failure.
 * NUMBERS  The result is the same to the last bit for any chunk, thread count, time budget and
 *          instruction set: each output is one fixed chain of fused multiply-adds (see >>kernels).
 *          Rounding mode and flush-to-zero of the caller do not matter and are left as they were.
 *          The promise of equal bits ends at -ffast-math.
 *
 * THE FILE (.jamba), little-endian throughout, every part at a multiple of 64 bytes, gaps zero
 *     header      256 bytes    JMB_HEADER_FIELDS, in >>format
 *     program     128 bytes a block    JMB_BLOCK_FIELDS: kind, unit, flags, routing, sizes
 *     directory   64 bytes a tensor    JMB_ENTRY_FIELDS: role, unit, index, type, rows, cols, offset, bytes, hash
 *     strings     (u32 key length, u32 value length, key, value), strings_size bytes in all
 *     tokenizer   see >>tokenizer; may be empty
 *     data        the tensors, in the order of the directory
 * The program alone decides which tensors exist, their shapes and their order (jmb_list_tensors);
 * what the directory says is compared with that and never sizes anything. Each tensor is a matrix
 * [rows, cols] cut in panels of 16 rows, the last one padded with zero rows. Inside a panel:
 *     f32        [cols][16]         one column of 16 rows after the other
 *     f16, bf16  [cols/2][16][2]    cols rounded up to 2
 *     q8         [cols/4][16][4]    cols rounded up to 64; byte = weight + 128; then
 *                [cols/64][16]      f16 scales; the panel is padded to 64 bytes
 *     q4         [cols/32][4][16][4]   cols rounded up to 64; byte j, r, k holds the codes of columns
 *                4 j + k (low half) and 4 j + 16 + k of the block, a code stands for jmb_q4_levels; then
 *                [cols/32][16]      f16 scales
 * A q8 weight is (byte - 128) * scale. A vector is a matrix of one column. Paired tensors (gate_up)
 * alternate: panel i of the gate, panel i of the up projection; their `rows` are those of one. Columns of
 * `conv` are taps, oldest first; `a` is -exp(A_log); `rope` holds head_dim / 2 inverse frequencies, of the
 * pairs (i, i + head_dim / 2). Entry `hash` is jmb_hash64 of the data from JMB_HASH_SEED on; the header's
 * `identity` is SHA-256 of everything before the data with the identity itself zero, and so names the model.
 *
 * A SAVED STATE, little-endian throughout, without gaps
 *     header      320 bytes    JMB_SAVED_FIELDS, in >>state; at 128 for each of 8 adapters u64 hash, f32 scale, zero
 *     tokens      u32 each: evaluated ones but for the first `unknown`, then pending ones
 *     marks       u32 each: their positions, ascending
 *     turns       u32 place, u32 JMB_TURN_ bits, ascending
 *     reply       where `text` says so: u32 bytes held, u32 begun, the held ones in 4 bytes; then text not given yet
 *     logits      vocab numbers, f32 or, where the state is smaller, f16; left out without JMB_SAVED_LOGITS
 *     state       of each convolution [channels/16][d_conv - 1][16] and scan [channels/16][d_state][16], in the
 *                 order of the program, heads of mamba2 by themselves; lanes without a channel are zero. f32, f16,
 *                 or q8: for each 16 numbers their codes s8, then their scale f32
 *     cache       of each attention block, for each 16 tokens, for each KV head: K [head_dim][16], V [16][head_dim
 *                 up to 16], and with q8 an f32 scale for each K and V; zero beyond the last token
 *     snapshots   of each mark: logits and state, as above
 *     zeros       up to a multiple of 8 bytes
 * Header and model give every size, which is compared with the bytes there are. `hash` is jmb_hash64 from
 * JMB_HASH_SEED on of the 24 bytes before it, then jmb_hash64_by_four of what follows it.
 */
/* clang-format off */
#ifndef JMB_PASS  /* >>kernels includes this file again, see there */
/* clang-format on */
#ifndef JAMBA_H
#define JAMBA_H

/* ===========================================================================================
 * >>api
 * =========================================================================================== */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(JAMBA_STATIC) && !defined(JAMBA_IMPLEMENTATION)
#error "JAMBA_STATIC needs JAMBA_IMPLEMENTATION in the same file"
#endif

#ifndef JAMBA_API
#if defined(JAMBA_STATIC) && (defined(__GNUC__) || defined(__clang__))
#define JAMBA_API static __attribute__((unused))
#elif defined(JAMBA_STATIC)
#define JAMBA_API static
#else
#define JAMBA_API extern
#endif
#endif

/* ---- version ----------------------------------------------------------- */

#define JAMBA_VERSION_MAJOR 0
#define JAMBA_VERSION_MINOR 1
#define JAMBA_VERSION_PATCH 0
#define JAMBA_VERSION (JAMBA_VERSION_MAJOR * 10000 + JAMBA_VERSION_MINOR * 100 + JAMBA_VERSION_PATCH)

/* JAMBA_VERSION of the implementation that was linked. */
JAMBA_API int jamba_version(void);
/* Version and build options in a few words, such as "0.1.0 openmp"; says "unoptimised" when built with -O0. */
JAMBA_API const char *jamba_build_info(void);

/* ---- results and errors ------------------------------------------------ */

#define JAMBA_RESULTS(X)                                                     \
    X(JAMBA_OK, 0, "ok")                                                     \
    X(JAMBA_PENDING, 1, "time budget spent, call again")                     \
    X(JAMBA_ERR_ARGUMENT, -1, "invalid argument")                            \
    X(JAMBA_ERR_MEMORY, -2, "out of memory")                                 \
    X(JAMBA_ERR_IO, -3, "read failed")                                       \
    X(JAMBA_ERR_FORMAT, -4, "not a valid file")                              \
    X(JAMBA_ERR_UNSUPPORTED, -5, "valid, but not supported by this build")   \
    X(JAMBA_ERR_CONTEXT, -6, "context window is full")                       \
    X(JAMBA_ERR_MISMATCH, -7, "made for another model")                      \
    X(JAMBA_ERR_ABORTED, -8, "stopped by a callback")                        \
    X(JAMBA_ERR_NUMERIC, -9, "a logit is not a finite number")               \
    X(JAMBA_ERR_TEXT, -10, "not valid UTF-8, or the model has no tokenizer") \
    X(JAMBA_ERR_FILTER, -11, "the logit filter allows no token")

typedef enum jamba_result {
#define JMB_X(name, value, text) name = value,
    JAMBA_RESULTS(JMB_X)
#undef JMB_X
    JAMBA_RESULT_MAX = 0x7fffffff
} jamba_result;

/* Filled on failure only; pass NULL where you do not care. */
typedef struct jamba_error {
    jamba_result code;
    uint64_t offset;   /* byte offset in the file for FORMAT and IO errors, in the text for TEXT, else 0 */
    char message[240]; /* one English sentence that names the tensor or value at fault */
} jamba_error;

/* The text beside each code above. */
JAMBA_API const char *jamba_result_name(jamba_result result);

/* ---- hooks the host may supply (all optional) -------------------------- */

/* Called from any thread that uses the model or session. */
typedef struct jamba_allocator {
    void *(*alloc)(void *user, size_t size, size_t align); /* NULL on failure; align is a power of two */
    void (*free)(void *user, void *ptr, size_t size);      /* size as given to alloc */
    void *user;
} jamba_allocator;

/* run() calls task(ctx, i) once for every i in [0, count), in any order and on any threads, and
 * returns when all are done. */
typedef void (*jamba_task_fn)(void *ctx, int index);
typedef struct jamba_executor {
    void (*run)(void *user, int count, jamba_task_fn task, void *ctx);
    void *user;
    int width;       /* how many tasks can run at once, 1 to 4096 */
    bool concurrent; /* all `width` tasks of one run() are live at once, so they may wait for each other */
} jamba_executor;

/* Return false to stop the operation; it then fails with JAMBA_ERR_ABORTED. */
typedef bool (*jamba_progress_fn)(void *user, const char *stage, uint64_t done, uint64_t total);

/* Called after evaluation of each token, in order, with the `vocab` logits that follow it; again for tokens that a
 * rewind has queued again. No callback may work on the session that calls it: that fails (reset: does nothing). */
typedef void (*jamba_logits_fn)(void *user, int32_t position, const float *logits);

/* ---- where bytes come from --------------------------------------------- */

typedef struct jamba_io {
    size_t (*read)(void *user, uint64_t offset, void *dst, size_t size); /* bytes read; fewer is an error */
    void *user;
    uint64_t size;
} jamba_io;

/* Exactly one of path, data and io is set; build it with one of the functions below. */
typedef struct jamba_source {
    const char *path;
    const void *data;
    size_t size;
    jamba_io io;
} jamba_source;

/* Memory-mapped where possible. The file must not be truncated while the model lives. */
JAMBA_API jamba_source jamba_from_file(const char *path);
/* Used in place when aligned to 64 bytes (it must then outlive the model), copied otherwise. */
JAMBA_API jamba_source jamba_from_memory(const void *data, size_t size);
/* Read into the heap. */
JAMBA_API jamba_source jamba_from_io(jamba_io io);

/* ---- model: immutable after load, shared by any number of threads ------ */

typedef struct jamba_model jamba_model;
typedef struct jamba_adapter jamba_adapter;
typedef struct jamba_session jamba_session;

typedef struct jamba_memory { /* bytes */
    size_t mapped;            /* file pages, shared and reclaimable */
    size_t weights;           /* heap: the file's bytes when not mapped, and tables */
    size_t kv;                /* attention caches for the whole context */
    size_t state;             /* convolution and SSM state, constant */
    size_t marks;             /* snapshots for going back */
    size_t scratch;           /* activations, token log, logits */
} jamba_memory;

/* The instruction set to use; results do not depend on it. */
typedef enum jamba_cpu {
    JAMBA_CPU_BEST = 0,
    JAMBA_CPU_SCALAR,
    JAMBA_CPU_AVX2,    /* with FMA and F16C */
    JAMBA_CPU_AVXVNNI, /* the same with the 256-bit integer dot product */
    JAMBA_CPU_AVX512,  /* F, BW, DQ, VL and VNNI */
    JAMBA_CPU_NEON,    /* with the dot and matrix product instructions where the CPU has them */
    JAMBA_CPU_WASM     /* SIMD128, where the compiler was given -msimd128 */
} jamba_cpu;

typedef struct jamba_model_params {   /* zero means default, everywhere */
    const jamba_allocator *allocator; /* NULL: malloc and free; the struct is copied */
    jamba_cpu cpu;                    /* JAMBA_ERR_UNSUPPORTED where the CPU lacks it */
    jamba_progress_fn progress;       /* bytes read or verified */
    void *progress_user;
    bool no_mmap; /* read the whole file into the heap: safe against truncation by others */
    bool verify;  /* check the hash of every tensor; reads the whole file */
    bool huge_pages; /* Linux: read the file into memory of huge pages. Not under -std=c99, which hides madvise() */
} jamba_model_params;

typedef struct jamba_model_info {
    const char *architecture; /* what the converter wrote, "" when absent */
    const char *isa;          /* kernels in use, such as "avx512" */
    const char *type;         /* storage type of the linears: "f32", "f16", "bf16", "q8", "q4" */
    int32_t vocab, hidden, blocks, attention_blocks, recurrent_blocks;
    int32_t context; /* trained context length in tokens */
    int32_t token_bos, token_pad; /* -1 when the model has none */
    int32_t token_eos[8], eos_count;
    uint64_t parameters, parameters_active; /* active: experts counted top_k / experts */
    uint64_t kv_bytes_per_token;            /* at 16 bits */
    uint64_t state_bytes;                   /* convolution and SSM state of one session, f32 */
    uint8_t identity[32];                   /* SHA-256 that names this model */
    jamba_memory memory;
} jamba_model_info;

/* Loads and checks a model. *out is NULL on failure. Time is that of reading the metadata when the
 * file is mapped and `verify` is off. */
JAMBA_API jamba_result jamba_model_load(
    jamba_model **out, jamba_source source, const jamba_model_params *params, jamba_error *error);
/* NULL is allowed. Every session of the model must be freed before. */
JAMBA_API void jamba_model_free(jamba_model *model);
JAMBA_API void jamba_model_describe(const jamba_model *model, jamba_model_info *out);
/* String carried in the file under `key`, such as "architecture"; NULL when absent. Lives as long as the model. */
JAMBA_API const char *jamba_model_meta(const jamba_model *model, const char *key);

/* ---- LoRA adapters: immutable after load, shared as models are ----------- */

enum { JAMBA_ADAPTERS_MAX = 8 }; /* that one session can use at a time */

typedef struct jamba_adapter_info {
    int32_t matrices, rank; /* matrices adapted, and the highest rank */
    uint64_t parameters;
    size_t memory;          /* bytes of heap */
    uint64_t hash;          /* of the file: names this adapter */
} jamba_adapter_info;

/* Loads an adapter that tools/convert has made for this model, into the heap. JAMBA_ERR_MISMATCH: made for another. */
JAMBA_API jamba_result jamba_adapter_load(
    jamba_adapter **out, const jamba_model *model, jamba_source source, jamba_error *error);
/* NULL is allowed. No session may use it any more; goes before its model. */
JAMBA_API void jamba_adapter_free(jamba_adapter *adapter);
JAMBA_API void jamba_adapter_describe(const jamba_adapter *adapter, jamba_adapter_info *out);

/* ---- session: one timeline; one thread at a time ------------------------ */

/* q8: 8 bits and a scale for each head of each key and value. */
typedef enum jamba_kv_type { JAMBA_KV_F16 = 0, JAMBA_KV_F32, JAMBA_KV_Q8 } jamba_kv_type;

typedef struct jamba_session_params { /* zero means default, everywhere */
    const jamba_allocator *allocator; /* NULL: the model's */
    const jamba_executor *executor;   /* NULL: serial, or OpenMP where compiled with it; copied */
    int32_t threads;                  /* for OpenMP; 0: its default, 1: serial */
    uint64_t (*now_us)(void *user);   /* NULL: the system's clock, monotonic but where -std=c99 hides that; called
                                         from any thread of the executor */
    void *now_user;
    int32_t context;       /* tokens; 0: the model's, at most 8192 */
    int32_t chunk;         /* prefill tokens per pass; 0: 128. Bigger is faster and takes more scratch */
    int32_t marks;         /* room for snapshots to go back to, each of the state and a row of logits */
    int32_t mark_every;    /* also marks by itself, at the end of a pass this many tokens after the last; 0: never */
    jamba_kv_type kv_type; /* precision of cached keys and values */
    int32_t fork_chunk;    /* chunk of this session's forks; 0: 8 */
    int32_t fork_marks;    /* room for marks of this session's forks */
    bool huge_pages;       /* as for the model: for the session's memory */
    jamba_progress_fn progress; /* tokens of the queue done; called between passes */
    void *progress_user;
    jamba_logits_fn on_logits; /* computes logits for every token; NULL: for the last one of the queue */
    void *logits_user;
} jamba_session_params;

typedef struct jamba_session_info {
    int32_t position; /* tokens evaluated */
    int32_t pending;  /* tokens fed and not yet evaluated */
    int32_t context, chunk, width; /* width: tasks run at once */
    int32_t marks;                 /* snapshots held */
    jamba_memory memory;
} jamba_session_info;

/* What jamba_session_create() would allocate, to the byte, without allocating it. */
JAMBA_API jamba_result jamba_session_estimate(
    const jamba_model *model, const jamba_session_params *params, jamba_memory *out);
/* One allocation, and one for keys and values where the model has attention; none later. *out is NULL on failure. */
JAMBA_API jamba_result jamba_session_create(
    jamba_session **out, const jamba_model *model, const jamba_session_params *params, jamba_error *error);
/* A second timeline from here on, queue and parameters included, with room for `tokens` more than are fed (0: for the
 * source's context). It costs the state, a reserve of KV pages for those tokens, and a scratch of `fork_chunk` rows:
 * full pages of 256 tokens are shared and counted. Source and forks are freed in any order and used from different
 * threads at once. No session writes to a page that others hold: one that goes back below a fork and on from there
 * takes fresh pages from its reserve, and jamba_feed() fails with JAMBA_ERR_CONTEXT when they run out. Marks stay with
 * the source. JAMBA_ERR_ARGUMENT in the middle of a token. */
JAMBA_API jamba_result jamba_session_fork(
    jamba_session **out, const jamba_session *source, int32_t tokens, jamba_error *error);
/* What jamba_session_fork() would allocate, to the byte. */
JAMBA_API jamba_result jamba_session_fork_estimate(const jamba_session *source, int32_t tokens, jamba_memory *out);
/* NULL is allowed. */
JAMBA_API void jamba_session_free(jamba_session *session);
/* Back to position 0, with an empty queue. */
JAMBA_API void jamba_session_reset(jamba_session *session);
JAMBA_API void jamba_session_describe(const jamba_session *session, jamba_session_info *out);
/* Adapts the model, for this session, from the next token on: y = W x + sum of scale * B A x (Hu et al. 2021). What is
 * evaluated stays as it is; tokens that a rewind runs again are run with the adapters of now. Costs time by their
 * ranks, and one allocation for `chunk` rows of them. scales NULL: 1 for each; what has scale 0 is left out. count 0:
 * none. Forks keep them. A saved state says which they were and is restored only where they are set. Fails with
 * JAMBA_ERR_MISMATCH for an adapter of another model, JAMBA_ERR_ARGUMENT in the middle of a token, JAMBA_ERR_CONTEXT as
 * jamba_session_rewind(). */
JAMBA_API jamba_result jamba_session_set_adapters(
    jamba_session *session, jamba_adapter *const *adapters, const float *scales, size_t count);
/* Of the last failed call on this session. */
JAMBA_API const jamba_error *jamba_session_error(const jamba_session *session);
/* Tokens evaluated or queued so far, *count of them; valid until the session is freed. -1 for the first ones
 * when a saved state left them out. */
JAMBA_API const int32_t *jamba_session_tokens(const jamba_session *session, size_t *count);

/* ---- marks: going back -------------------------------------------------- */

/* Recurrent state cannot be undone, so going back takes a snapshot: the state is copied back, keys and values
 * are cut. Models of attention alone go back anywhere without one. The calls below copy at once; snapshots of
 * `mark_every` are made within the budget of jamba_step(). */

/* Keeps a snapshot of this place, with its logits. When all are in use, the one goes whose neighbours are closest to
 * each other; the first of several stays. JAMBA_ERR_ARGUMENT while tokens are pending, or without room for marks. */
JAMBA_API jamba_result jamba_session_mark(jamba_session *session);
/* Back to where `position` tokens had been fed: the nearest snapshot at or before it is restored, and the tokens in
 * between are queued again; *replay (may be NULL) says how many. 0: the logits are there at once (but at position 0,
 * which has none). Later snapshots are lost. Also drops what is pending, in the middle of a token too. Takes as long as
 * a copy of the state. With nothing changed: JAMBA_ERR_ARGUMENT when tokens in between were left out of a saved state,
 * JAMBA_ERR_CONTEXT when other adapters are set than they ran with and forks hold the pages that they need anew. */
JAMBA_API jamba_result jamba_session_rewind(jamba_session *session, int32_t position, int32_t *replay);

/* ---- evaluation --------------------------------------------------------- */

/* Queues tokens. Copies them, computes nothing. JAMBA_ERR_CONTEXT when they do not all fit and
 * JAMBA_ERR_ARGUMENT when one is not in [0, vocab): then none is queued. */
JAMBA_API jamba_result jamba_feed(jamba_session *session, const int32_t *tokens, size_t count);
/* Works on the queue for about `budget_us` microseconds (0: until it is empty); stops inside a token. Between two looks
 * at the clock a thread does no more than reading 512 KiB of weights takes, or as much other work, whatever `chunk` is:
 * some 20 microseconds. JAMBA_OK: queue empty, logits ready. JAMBA_PENDING: call again. The result does not depend on
 * the budget. */
JAMBA_API jamba_result jamba_step(jamba_session *session, uint64_t budget_us);
/* jamba_feed() and jamba_step(session, 0) in one call. */
JAMBA_API jamba_result jamba_eval(jamba_session *session, const int32_t *tokens, size_t count);
/* Works on the queues of `count` different sessions of one model in common passes, so that the weights are read once
 * for all. Each session ends with the bits that it would have alone. The first one lends its executor, clock and
 * scratch: a pass holds at most its `chunk` tokens, taken from the sessions in order. A token that a budget has left
 * half way is finished first. JAMBA_OK: all queues are empty. JAMBA_PENDING: call again; until then the sessions hang
 * together: use them from one thread. One that goes back, is reset, restored or freed leaves the common pass at once,
 * whose other tokens go on; only freeing the first one finishes it before.
 * JAMBA_ERR_ABORTED when a progress callback stops it: what is left stays queued. jamba_session_error(sessions[0])
 * tells about errors. */
JAMBA_API jamba_result jamba_step_batch(jamba_session *const *sessions, size_t count, uint64_t budget_us);
/* jamba_feed() of tokens[i] to sessions[i] (NULL: of none), then jamba_step_batch() without a budget. When one
 * cannot be fed, none is. */
JAMBA_API jamba_result jamba_eval_batch(jamba_session *const *sessions, const int32_t *tokens, size_t count);
/* `vocab` floats after the last token, valid until the next call on this session. NULL before the
 * first token and while tokens are pending. */
JAMBA_API const float *jamba_logits(const jamba_session *session);

/* ---- sampling: a plain struct the caller owns ---------------------------- */

/* All zero: greedy. Order: repeat penalty, filter, temperature, top_k, top_p, min_p, draw. */
typedef struct jamba_sampler {
    float temperature;     /* 0: greedy */
    int32_t top_k;         /* 0: off */
    float top_p;           /* 0: off; keeps the fewest tokens whose probabilities reach top_p */
    float min_p;           /* 0: off; drops tokens below min_p times the highest probability */
    float repeat_penalty;  /* 0: off, else 0.001 to 1000; positive logits are divided by it, negative ones multiplied */
    int32_t repeat_window; /* tokens looked back; 0: 64 */
    uint64_t seed;         /* advanced by every draw: copy the struct to replay */
    void (*filter)(void *user, float *logits, int32_t vocab); /* may set -INFINITY: not allowed */
    void *filter_user;
} jamba_sampler;

/* The next token (>= 0), or a negative jamba_result: JAMBA_ERR_NUMERIC when a logit is NaN or
 * infinite, JAMBA_ERR_FILTER when the filter allows none, JAMBA_ERR_ARGUMENT when there are no logits
 * or a field is out of range. NULL sampler: greedy. The token is not fed. */
JAMBA_API int32_t jamba_sample(jamba_session *session, jamba_sampler *sampler);

typedef struct jamba_candidate {
    int32_t token;
    float logprob; /* natural logarithm of its probability, of all tokens and without a sampler */
} jamba_candidate;

/* The `count` likeliest next tokens, falling, equal ones by number; fewer when the vocabulary has fewer. Returns how
 * many, 0 without logits or when one is not a finite number. */
JAMBA_API size_t jamba_top(const jamba_session *session, jamba_candidate *out, size_t count);
/* Feeds and evaluates tokens; logprobs[i] is the log-probability of tokens[i] after what stands before it. Needs logits
 * to begin with (else JAMBA_ERR_ARGUMENT). Takes a pass for each token; where on_logits is set, for each chunk. Errors
 * as of jamba_feed(), with nothing done; JAMBA_ERR_ABORTED and JAMBA_ERR_NUMERIC keep what is done. */
JAMBA_API jamba_result jamba_score(jamba_session *session, const int32_t *tokens, size_t count, float *logprobs);

/* ---- saved states: save games, baked prompts ------------------------------ */

/* A session's content as bytes, bound to its model: restored on any CPU, build, executor, chunk and context size
 * that holds it, the session goes on as if never interrupted. What the saving session was made with, but for
 * its type of keys and values, does not show in the bytes. */

/* Precision of saved numbers. EXACT: bit for bit. Q8: 8 bits, and a scale for 16 numbers of the state and for each
 * head of each key and value. A NaN or infinity stays one, in Q8 with all that share its scale. */
typedef enum jamba_form { JAMBA_EXACT = 0, JAMBA_F16, JAMBA_Q8 } jamba_form;

typedef struct jamba_save_params { /* zero means default, everywhere */
    jamba_form state;              /* of the convolution and SSM state; with F16 and Q8 logits are F16 */
    jamba_form kv;                 /* of keys and values; EXACT: as the session holds them. Never wider than that */
    bool no_tokens;                /* leaves out the tokens evaluated, the turns and a reply that is being written: no
                                      rewinding to here or before but to marks and 0, no repeat penalty for them */
    bool no_logits;                /* leaves out the last logits: then a token must be fed before sampling */
    bool marks;                    /* with all marks, otherwise none */
    const jamba_sampler *sampler;  /* NULL: none; for jamba_state_describe() to give back, without its filter */
} jamba_save_params;

/* jamba_session_save_as() with the defaults. */
JAMBA_API size_t jamba_session_save(const jamba_session *session, void *buffer, size_t capacity);
/* Returns the bytes needed; writes when they fit `capacity`. 0: nothing can be saved inside a callback or in the
 * middle of a token (step on first), or F16 does not hold a number (above 65504; what was written is of no use). */
JAMBA_API size_t jamba_session_save_as(
    const jamba_session *session, const jamba_save_params *params, void *buffer, size_t capacity);
/* Replaces the session's content, all or nothing. The bytes may have any alignment and come from anywhere, but must
 * not change meanwhile. Keys and values turn into the session's type, rounded as when evaluated with it. Marks: as
 * many as there is room for, chosen as by jamba_session_mark(). JAMBA_ERR_FORMAT: damaged, cut off or no saved
 * state; JAMBA_ERR_MISMATCH: of another model, or with other adapters; JAMBA_ERR_UNSUPPORTED: of another version of
 * this file; JAMBA_ERR_CONTEXT: more tokens than the session has room for. */
JAMBA_API jamba_result jamba_session_restore(jamba_session *session, const void *buffer, size_t size);
/* The same from a file, which is mapped where possible, from memory, or through callbacks. */
JAMBA_API jamba_result jamba_session_load(jamba_session *session, jamba_source source);

typedef struct jamba_state_info {
    uint32_t version;
    uint8_t identity[32]; /* of the model, see jamba_model_info */
    int32_t position, pending, marks;
    jamba_form state;
    jamba_kv_type kv_type;
    bool tokens, logits, has_sampler; /* what it holds; tokens: all of them */
    jamba_sampler sampler;
    int32_t adapters; /* that the session used: jamba_adapter_info.hash and scale of each */
    uint64_t adapter_hash[JAMBA_ADAPTERS_MAX];
    float adapter_scale[JAMBA_ADAPTERS_MAX];
} jamba_state_info;

/* What a saved state holds; needs no model. Errors as jamba_session_restore(), but that it fits no session. */
JAMBA_API jamba_result jamba_state_describe(
    const void *buffer, size_t size, jamba_state_info *out, jamba_error *error);

/* ---- text ---------------------------------------------------------------- */

enum {
    JAMBA_TEXT_BOS = 1,      /* encode: the model's first token in front, if it has one */
    JAMBA_TEXT_SPECIAL = 2,  /* encode: special tokens in the text match; decode: they are written out */
    JAMBA_CHAT_BEGIN = 4,    /* chat: first turn of a conversation */
    JAMBA_CHAT_CONTINUE = 8, /* chat: close the reply that the model has just written (its end token not fed) */
    JAMBA_CHAT_REPLY = 16    /* chat: open the model's reply */
};

/* Tokens of `text` (any bytes; JAMBA_ERR_TEXT unless valid UTF-8). *count is what is needed; nothing
 * is written when that is more than `capacity` (JAMBA_ERR_ARGUMENT; with capacity 0, JAMBA_OK). Uses
 * scratch memory from the model's allocator, about 70 bytes for each byte of text. */
JAMBA_API jamba_result jamba_encode(const jamba_model *model, const char *text, size_t length, unsigned flags,
    int32_t *tokens, size_t capacity, size_t *count, jamba_error *error);
/* Text of whole token sequences, not terminated; *length and capacity as in jamba_encode(). */
JAMBA_API jamba_result jamba_decode(const jamba_model *model, const int32_t *tokens, size_t count,
    unsigned flags, char *text, size_t capacity, size_t *length, jamba_error *error);

/* Decoding token by token. All zero at the start of a text. */
typedef struct jamba_text_stream {
    uint8_t held[4];    /* bytes of an unfinished character */
    int32_t held_count;
    int32_t started;
} jamba_text_stream;

/* Longest text one jamba_decode_next() can return. */
enum { JAMBA_TEXT_MAX = 4096 };

/* Bytes written to `text` (JAMBA_TEXT_MAX of room): whole UTF-8 characters only, what is unfinished is
 * held back; bytes that cannot become a character turn into U+FFFD. token -1 flushes. */
JAMBA_API size_t jamba_decode_next(
    const jamba_model *model, jamba_text_stream *stream, int32_t token, unsigned flags, char *text);

/* The token's bytes as stored, not terminated; NULL when there is none. */
JAMBA_API const char *jamba_token_text(const jamba_model *model, int32_t token, size_t *length);
/* The token whose text is exactly `text`; -1 when absent. */
JAMBA_API int32_t jamba_token_find(const jamba_model *model, const char *text);
/* Whether the model ends a text or turn with this token. */
JAMBA_API bool jamba_token_is_end(const jamba_model *model, int32_t token);

typedef struct jamba_message {
    const char *role; /* "system", "user", "assistant" or "tool" */
    const char *content;
} jamba_message;

/* Tokens of one or more turns in the model's chat format, for appending to what was fed before.
 * Content never yields special tokens. JAMBA_ERR_UNSUPPORTED when the model has no chat format or no
 * such role. *count and capacity as in jamba_encode(). */
JAMBA_API jamba_result jamba_chat_encode(const jamba_model *model, const jamba_message *messages, size_t count,
    unsigned flags, int32_t *tokens, size_t capacity, size_t *needed, jamba_error *error);

/* ---- conversation: the session keeps track of who speaks ------------------- */

/*     jamba_say(session, "system", "You keep the inn.");
 *     jamba_say(session, "user", "Good evening!");
 *     while ((result = jamba_reply(session, &params, &text, &length)) == JAMBA_PENDING || length > 0)
 *         show(text, length);
 *
 * Each call only appends. With room for marks the session marks itself where each message and each reply begins: give
 * a conversation three or more. The mark after the system messages stays when others go. */

/* Queues a message in the model's chat format, in front of it what begins the conversation or closes the reply before.
 * Several in a row are fine. JAMBA_ERR_CONTEXT when it does not fit, JAMBA_ERR_UNSUPPORTED when the model has no chat
 * format or no such role, JAMBA_ERR_TEXT when it is not valid UTF-8: nothing has changed then. */
JAMBA_API jamba_result jamba_say(jamba_session *session, const char *role, const char *content);

enum { JAMBA_STOP_MAX = 64 }; /* bytes of a stop string */

typedef struct jamba_reply_params { /* zero means default, everywhere */
    jamba_sampler *sampler;   /* NULL: greedy */
    uint64_t budget_us;       /* of one call, as in jamba_step(); 0: none */
    int32_t max_tokens;       /* of the whole reply; 0: until the model ends it */
    const char *const *stops; /* the reply ends before the first of these strings, each of 1 to JAMBA_STOP_MAX bytes */
    size_t stop_count;
    unsigned flags; /* JAMBA_TEXT_SPECIAL: special tokens are written out, such as a model's <think> */
} jamba_reply_params;

/* The next piece of the model's reply, which it opens when none is open: *length > 0 bytes of whole UTF-8 characters,
 * not terminated, valid until the next call on this session. JAMBA_OK with *length 0: the reply has ended, and stays so
 * until something is said or fed, or the session goes back (to go on with a reply that max_tokens has cut, rewind to
 * where it stands, and allow more). What may be the beginning of a stop string is held back. JAMBA_PENDING: call again.
 *     JAMBA_ERR_CONTEXT leaves session and sampler as they were, but that the reply may be open: after
 * jamba_session_restart() it goes on.
 *     The end token is not fed, nor is the token that completes a stop string. Tokens before that one which hold its
 * beginning are taken back, if a mark of this reply or a model of attention alone makes that cheap; else they stay.
 *     A model without a chat format goes on with what was fed. */
JAMBA_API jamba_result jamba_reply(
    jamba_session *session, const jamba_reply_params *params, const char **text, size_t *length);

/* Which of `count` options (continuations of what stands, of at least one token) is it? logprobs (may be NULL) gets the
 * log-probability of each: the sum over its tokens; *choice the likeliest, the first of equals, or, with a temperature,
 * one drawn from them with the sampler's seed (its other fields do not count). End the options with what follows, such
 * as a quote or a newline: else "go" has the probability of "go north" in it. They are read on forks, on common ones as
 * long as they begin alike, all branches together; the session stays as it is. Needs logits, as jamba_sample(). */
JAMBA_API jamba_result jamba_choose(jamba_session *session, const char *const *options, size_t count,
    jamba_sampler *sampler, float *logprobs, int32_t *choice);

typedef enum jamba_turn_kind { JAMBA_TURN_SYSTEM = 0, JAMBA_TURN_SAID, JAMBA_TURN_REPLY } jamba_turn_kind;

/* jamba_session_rewind() to a reply's position and jamba_reply() write another reply; rewinding to the position of
 * another turn and jamba_say() replace that. */
typedef struct jamba_turn {
    int32_t position;
    jamba_turn_kind kind;
} jamba_turn;

/* How many turns there are; the last `capacity` of them are written, in order. */
JAMBA_API size_t jamba_turns(const jamba_session *session, jamba_turn *out, size_t capacity);
/* Makes room in a long conversation: what stands before the first message that is not of the system stays, and the
 * last `turns` such messages with all that follows them, replies and half a reply too; what lies between is forgotten.
 * *replay (may be NULL) is how many tokens will be read again: those that follow the mark after the system messages.
 * With nothing changed: JAMBA_ERR_CONTEXT when that leaves nothing out (ask for fewer turns), and the errors of
 * jamba_session_rewind(). */
JAMBA_API jamba_result jamba_session_restart(jamba_session *session, int32_t turns, int32_t *replay);

#ifdef __cplusplus
}
#endif
#endif /* JAMBA_H */
#endif /* JMB_PASS */

/* The API ends here. Below is the implementation. */

#if defined(JAMBA_IMPLEMENTATION) && (defined(JMB_PASS) || !defined(JMB_IMPLEMENTED))
#ifndef JMB_PASS
#define JMB_IMPLEMENTED 1

/* ===========================================================================================
 * >>config - compiler, instruction sets, and the floating-point rules of this file
 * =========================================================================================== */

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#if (defined(__GNUC__) && !defined(__clang__))
/* gcc contracts a * b + c even between intrinsics; every fused product here is explicit. -std=c99 makes sums of floats
 * double on some machines. Coalescing of variables puts two moves beside each integer dot product of a tile. */
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off", "no-fast-math", "no-tree-coalesce-vars")
#if defined(__s390__)
#pragma GCC optimize("excess-precision=fast")
#endif
#elif defined(__clang__)
#if !defined(__wasm__) /* which has no float_control */
#pragma float_control(push)
#pragma float_control(precise, on)
#endif
#pragma clang fp contract(off)
#endif

#if defined(_OPENMP)
#include <omp.h>
#endif

/* The x87 rounds to 80 bits. gcc inlines no intrinsics that were declared for it: those are then done without. */
#if defined(__i386__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SSE2_MATH__)
#if defined(_IMMINTRIN_H_INCLUDED) && !defined(JAMBA_NO_SIMD)
#define JAMBA_NO_SIMD
#endif
#pragma GCC target("sse,fpmath=sse") /* SSE2 would promise the intrinsics a type that it brings only as a flag */
#define JMB_SSE_MATH 1
#endif
#if (defined(__x86_64__) || defined(_M_X64) || defined(__i386__) || defined(_M_IX86)) && !defined(__TINYC__)
#define JMB_X86 1
#include <immintrin.h>
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#if defined(_MSC_VER) && defined(__clang__) /* whose immintrin.h then has only what -m flags turn on */
#include <smmintrin.h>
#include <avxintrin.h>
#include <avx2intrin.h>
#include <f16cintrin.h>
#include <fmaintrin.h>
#include <avx512fintrin.h>
#include <avx512bwintrin.h>
#include <avx512dqintrin.h>
#include <avx512vlintrin.h>
#include <avx512vlbwintrin.h>
#include <avx512vnniintrin.h>
#include <avx512vlvnniintrin.h>
#include <avxvnniintrin.h>
#endif
#else
#define JMB_X86 0
#endif
#if defined(JMB_SSE_MATH)
#pragma GCC target("sse2,fpmath=sse")
#endif
#if JMB_X86 && !defined(JAMBA_NO_SIMD)
#define JMB_X86_KERNELS 1
#else
#define JMB_X86_KERNELS 0
#endif
/* AVX-VNNI came with gcc 11, clang 12 and Visual Studio 2022. JAMBA_NO_AVXVNNI is for an assembler older than that. */
#if defined(JAMBA_NO_AVXVNNI)
#define JMB_AVXVNNI_KERNELS 0
#elif defined(__apple_build_version__)
#define JMB_AVXVNNI_KERNELS (JMB_X86_KERNELS && __clang_major__ >= 13)
#elif defined(__clang__)
#define JMB_AVXVNNI_KERNELS (JMB_X86_KERNELS && __clang_major__ >= 12)
#elif defined(__GNUC__)
#define JMB_AVXVNNI_KERNELS (JMB_X86_KERNELS && __GNUC__ >= 11)
#elif defined(_MSC_VER)
#define JMB_AVXVNNI_KERNELS (JMB_X86_KERNELS && _MSC_VER >= 1930)
#else
#define JMB_AVXVNNI_KERNELS 0
#endif
#if defined(__aarch64__) && !defined(__AARCH64EB__) && !defined(JAMBA_NO_SIMD)
#define JMB_NEON_KERNELS 1
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#else
#define JMB_NEON_KERNELS 0
#endif
/* Intrinsics of the 8-bit matrix product: gcc 10; a clang that has them without its own flag. */
#if defined(__ARM_FEATURE_MATMUL_INT8)
#define JMB_I8MM_KERNELS JMB_NEON_KERNELS
#elif defined(__clang__)
#define JMB_I8MM_KERNELS (JMB_NEON_KERNELS && __clang_major__ >= 16)
#elif defined(__GNUC__)
#define JMB_I8MM_KERNELS (JMB_NEON_KERNELS && __GNUC__ >= 10)
#else
#define JMB_I8MM_KERNELS 0
#endif
/* WebAssembly has nothing to detect: a module with SIMD loads where the machine has it. */
#if defined(__wasm_simd128__) && !defined(JAMBA_NO_SIMD)
#define JMB_WASM_KERNELS 1
#include <wasm_simd128.h>
#else
#define JMB_WASM_KERNELS 0
#endif

#if defined(__GNUC__) || defined(__clang__)
#define JMB_TARGET(isa) __attribute__((target(isa)))
#define JMB_INLINE static inline __attribute__((always_inline, unused))
#define JMB_UNUSED __attribute__((unused))
#define JMB_RESTRICT __restrict__
#else
#define JMB_TARGET(isa)
#define JMB_INLINE static inline
#define JMB_UNUSED
#define JMB_RESTRICT __restrict
#endif

/* Atomic operations for tasks that run at once; without them executors get one phase at a time. */
#if (defined(__GNUC__) || defined(__clang__)) && defined(__GCC_ATOMIC_LLONG_LOCK_FREE) && \
    __GCC_ATOMIC_LLONG_LOCK_FREE == 2
#define JMB_ATOMICS 1
#define JMB_ALIGNED8 __attribute__((aligned(8)))
#define JMB_ATOMIC_LOAD(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define JMB_ATOMIC_STORE(p, value) __atomic_store_n(p, value, __ATOMIC_RELEASE)
#define JMB_ATOMIC_DECREMENT(p) __atomic_sub_fetch(p, 1, __ATOMIC_ACQ_REL)
#define JMB_ATOMIC_SWAP(p, old, value) \
    __atomic_compare_exchange_n(p, old, value, true, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)
#else
#define JMB_ATOMICS 0
#define JMB_ALIGNED8
#endif

/* Counts of what several sessions hold; both give the new value. Without atomic operations such sessions must stay on
 * one thread. */
#if (defined(__GNUC__) || defined(__clang__)) && defined(__GCC_ATOMIC_INT_LOCK_FREE) && __GCC_ATOMIC_INT_LOCK_FREE == 2
#define JMB_COUNT_UP(p) __atomic_add_fetch(p, 1, __ATOMIC_ACQ_REL)
#define JMB_COUNT_DOWN(p) __atomic_sub_fetch(p, 1, __ATOMIC_ACQ_REL)
#define JMB_COUNT_OF(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#elif defined(_MSC_VER)
#define JMB_COUNT_UP(p) (uint32_t) _InterlockedIncrement((volatile long *)(p))
#define JMB_COUNT_DOWN(p) (uint32_t) _InterlockedDecrement((volatile long *)(p))
#define JMB_COUNT_OF(p) (uint32_t) _InterlockedOr((volatile long *)(p), 0)
#else
#define JMB_COUNT_UP(p) (++*(p))
#define JMB_COUNT_DOWN(p) (--*(p))
#define JMB_COUNT_OF(p) (*(p))
#endif

/* Whether floats are known to lie in memory as they do in files; where they do not, or who knows, bytes are put
 * together (v_load_le). */
#if (defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__) || defined(_WIN32)
#define JMB_LITTLE_ENDIAN 1
#else
#define JMB_LITTLE_ENDIAN 0
#endif

/* Tells MemorySanitizer that what memory holds is of no matter, where garbage is computed along and left out. */
#if defined(__has_feature)
#if __has_feature(memory_sanitizer)
#include <sanitizer/msan_interface.h>
#define JMB_ANY_CONTENT(p, size) __msan_unpoison(p, size)
#endif
#endif
#ifndef JMB_ANY_CONTENT
#define JMB_ANY_CONTENT(p, size) ((void)0)
#endif

/* How this file finds itself again. */
#ifndef JAMBA_HEADER_FILE
#define JAMBA_HEADER_FILE "jamba.h"
#endif

/* ===========================================================================================
 * >>base - errors, checked arithmetic, little-endian access, memory
 * =========================================================================================== */

/* Passes a failure on to the caller. */
#define JMB_TRY(expression)                          \
    do {                                             \
        jamba_result jmb_try_ = (expression);        \
        if (jmb_try_ != JAMBA_OK) return jmb_try_;   \
    } while (0)

/* The same for the comparison of a hash, which builds for fuzzing leave out: hardly a changed byte would pass. */
#if defined(FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION)
#define JMB_TRY_HASH(expression) ((void)sizeof(expression))
#else
#define JMB_TRY_HASH(expression) JMB_TRY(expression)
#endif

typedef struct jmb_text_out {
    char *data;
    size_t size, capacity; /* capacity includes the terminator */
} jmb_text_out;

static void jmb_put_char(jmb_text_out *out, char c)
{
    if (out->size + 1 < out->capacity) out->data[out->size++] = c;
}

static void jmb_put_string(jmb_text_out *out, const char *s)
{
    while (*s) jmb_put_char(out, *s++);
}

static void jmb_put_number(jmb_text_out *out, uint64_t value)
{
    char digits[20];
    int n = 0;
    do digits[n++] = (char)('0' + value % 10);
    while ((value /= 10) != 0);
    while (n > 0) jmb_put_char(out, digits[--n]);
}

/* The subset of printf that messages need: %s, %d (int), %u (unsigned), %z (size_t), %l (uint64_t), %%.
 * printf itself depends on the locale and drags stdio into every host. */
static void jmb_format_args(jmb_text_out *out, const char *format, va_list args)
{
    for (; *format; format++) {
        if (*format != '%') {
            jmb_put_char(out, *format);
            continue;
        }
        switch (*++format) {
        case 's': jmb_put_string(out, va_arg(args, const char *)); break;
        case 'u': jmb_put_number(out, va_arg(args, unsigned)); break;
        case 'z': jmb_put_number(out, va_arg(args, size_t)); break;
        case 'l': jmb_put_number(out, va_arg(args, uint64_t)); break;
        case 'd': {
            int value = va_arg(args, int);
            if (value < 0) jmb_put_char(out, '-');
            jmb_put_number(out, value < 0 ? 0u - (unsigned)value : (unsigned)value);
            break;
        }
        default: jmb_put_char(out, *format); break;
        }
    }
    out->data[out->size] = 0;
}

JMB_UNUSED static void jmb_format(char *buffer, size_t capacity, const char *format, ...)
{
    jmb_text_out out = { buffer, 0, capacity };
    va_list args;
    va_start(args, format);
    jmb_format_args(&out, format, args);
    va_end(args);
}

/* Fills `error`, which may be NULL. */
static void jmb_fill_error(jamba_error *error, jamba_result code, uint64_t offset, const char *format, ...)
{
    jmb_text_out out;
    va_list args;
    if (!error) return;
    out.data = error->message;
    out.size = 0;
    out.capacity = sizeof error->message;
    va_start(args, format);
    jmb_format_args(&out, format, args);
    va_end(args);
    error->code = code;
    error->offset = offset;
}

/* The same, and gives `code`, so that a failure is one line. A macro: static analysers do not see what a function of
 * variable arguments returns, and would follow every failure as if it were none. */
#define jmb_fail(error, code, ...) (jmb_fill_error(error, code, __VA_ARGS__), (code))

/* The one place for arithmetic on sizes that come from outside: saturates, so that a sum or product
 * that overflows is too large for every later comparison. */
static uint64_t jmb_add(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static uint64_t jmb_mul(uint64_t a, uint64_t b)
{
    return b != 0 && a > UINT64_MAX / b ? UINT64_MAX : a * b;
}

/* `value` up to the next multiple of `step`, a power of two. */
static uint64_t jmb_round_up(uint64_t value, uint64_t step)
{
    return value > UINT64_MAX - (step - 1) ? UINT64_MAX : (value + step - 1) & ~(step - 1);
}

static size_t jmb_pad16(size_t n)
{
    return (n + 15) & ~(size_t)15;
}

static size_t jmb_pad64(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

static uint32_t jmb_load_u16(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t jmb_load_u32(const uint8_t *p)
{
    return jmb_load_u16(p) | jmb_load_u16(p + 2) << 16;
}

static uint64_t jmb_load_u64(const uint8_t *p)
{
    return (uint64_t)jmb_load_u32(p) | (uint64_t)jmb_load_u32(p + 4) << 32;
}

static void jmb_store_u16(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)value;
    p[1] = (uint8_t)(value >> 8);
}

static void jmb_store_u32(uint8_t *p, uint32_t value)
{
    jmb_store_u16(p, value);
    jmb_store_u16(p + 2, value >> 16);
}

static void jmb_store_u64(uint8_t *p, uint64_t value)
{
    jmb_store_u32(p, (uint32_t)value);
    jmb_store_u32(p + 4, (uint32_t)(value >> 32));
}

static float jmb_float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static uint32_t jmb_bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static float jmb_load_f32(const uint8_t *p)
{
    return jmb_float_of(jmb_load_u32(p));
}

static void jmb_store_f32(uint8_t *p, float value)
{
    jmb_store_u32(p, jmb_bits_of(value));
}

/* By bits, so that it holds under -ffast-math too. */
static bool jmb_finite(float value)
{
    return (jmb_bits_of(value) & 0x7f800000u) != 0x7f800000u;
}

/* low <= value <= high, where low and high are not negative. By bits: whatever the caller's settings are, a subnormal
 * is not 0 and no exception is raised. False for NaN. */
static bool jmb_within(float value, float low, float high)
{
    uint32_t bits = jmb_bits_of(value), zero = bits == 0x80000000u;
    return zero ? jmb_bits_of(low) << 1 == 0 : bits >= jmb_bits_of(low) && bits <= jmb_bits_of(high);
}

static void *jmb_default_alloc(void *user, size_t size, size_t align)
{
    /* malloc gives 16 at best: keep the block's start in front of the aligned address */
    uint8_t *block;
    uintptr_t start;
    (void)user;
    if (size > SIZE_MAX - align - sizeof(void *)) return NULL;
    block = (uint8_t *)malloc(size + align + sizeof(void *));
    if (!block) return NULL;
    start = ((uintptr_t)block + sizeof(void *) + align - 1) & ~(uintptr_t)(align - 1);
    memcpy((void *)(start - sizeof(void *)), &block, sizeof(void *));
    return (void *)start;
}

static void jmb_default_free(void *user, void *ptr, size_t size)
{
    void *block;
    (void)user;
    (void)size;
    memcpy(&block, (uint8_t *)ptr - sizeof(void *), sizeof(void *));
    free(block);
}

static jamba_allocator jmb_allocator_or_default(const jamba_allocator *given)
{
    jamba_allocator standard;
    if (given) return *given;
    standard.alloc = jmb_default_alloc; /* not an initialiser: gcc for ARM would keep it in a writable section */
    standard.free = jmb_default_free;
    standard.user = NULL;
    return standard;
}

/* Blocks of one owner, freed together. */
typedef struct jmb_heap_block {
    struct jmb_heap_block *next;
    size_t size;
} jmb_heap_block;

typedef struct jmb_heap {
    jamba_allocator allocator;
    jmb_heap_block *blocks;
    size_t total;
} jmb_heap;

enum { JMB_ALIGN = 64 }; /* of every block: a cache line, an AVX-512 register */

/* `count` zeroed items of `size` bytes, aligned to 64; NULL when there is no memory. */
static void *jmb_heap_take_raw(jmb_heap *heap, uint64_t count, uint64_t size)
{
    uint64_t bytes = jmb_add(jmb_mul(count, size), JMB_ALIGN);
    jmb_heap_block *block;
    if (bytes > SIZE_MAX / 2) return NULL;
    block = (jmb_heap_block *)heap->allocator.alloc(heap->allocator.user, (size_t)bytes, JMB_ALIGN);
    if (!block) return NULL;
    block->next = heap->blocks;
    block->size = (size_t)bytes;
    heap->blocks = block;
    heap->total += (size_t)bytes;
    return (uint8_t *)block + JMB_ALIGN;
}

/* The same, all zero. */
static void *jmb_heap_take(jmb_heap *heap, uint64_t count, uint64_t size)
{
    void *memory = jmb_heap_take_raw(heap, count, size);
    if (memory) memset(memory, 0, (size_t)(count * size));
    return memory;
}

static void jmb_heap_free(jmb_heap *heap)
{
    while (heap->blocks) {
        jmb_heap_block *block = heap->blocks;
        heap->blocks = block->next;
        heap->allocator.free(heap->allocator.user, block, block->size);
    }
    heap->total = 0;
}

/* Measures a layout when `base` is NULL, places it otherwise: the same code decides both. */
typedef struct jmb_layout {
    uint8_t *base;
    uint64_t size;
} jmb_layout;

static void *jmb_place(jmb_layout *layout, uint64_t count, uint64_t size)
{
    uint64_t at = layout->size;
    layout->size = jmb_round_up(jmb_add(at, jmb_mul(count, size)), JMB_ALIGN);
    return layout->base ? layout->base + (size_t)at : NULL;
}

/* ===========================================================================================
 * >>platform - files and clock
 *
 * POSIX, Windows, or plain stdio. A file is mapped where that works and read into the heap where it
 * does not; the rest of this file sees bytes.
 * =========================================================================================== */

#if defined(_WIN32)
#if !defined(WIN32_LEAN_AND_MEAN)
#define WIN32_LEAN_AND_MEAN
#endif
#if !defined(NOMINMAX)
#define NOMINMAX
#endif
#include <windows.h>
#elif defined(__unix__) || defined(__APPLE__)
#define JMB_POSIX 1
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#else
#include <stdio.h>
#include <time.h>
#endif

#if defined(__EMSCRIPTEN__) /* whose mmap reads the file into the heap, unaligned */
#define JMB_NO_MMAP 1
#else
#define JMB_NO_MMAP 0
#endif
#if defined(O_CLOEXEC)
#define JMB_CLOEXEC O_CLOEXEC
#else
#define JMB_CLOEXEC 0
#endif

typedef struct jmb_file {
    uint64_t size;
    void *mapping; /* NULL unless mapped */
#if defined(_WIN32)
    HANDLE handle;
#elif defined(JMB_POSIX)
    int handle;
#else
    FILE *handle;
#endif
} jmb_file;

#if defined(_WIN32)

/* NULL, or why the file cannot be opened. */
static const char *jmb_file_open(jmb_file *file, const char *path)
{
    enum { LONGEST = 4096 };
    const DWORD share = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    LARGE_INTEGER size;
    WCHAR wide[LONGEST];
    memset(file, 0, sizeof *file);
    if (!MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, LONGEST))
        return "its name is not UTF-8, or too long";
    file->handle = CreateFileW(wide, GENERIC_READ, share, NULL, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, NULL);
    if (file->handle == INVALID_HANDLE_VALUE) {
        DWORD why = GetLastError();
        return why == ERROR_FILE_NOT_FOUND || why == ERROR_PATH_NOT_FOUND ? "no such file" : "it cannot be read";
    }
    if (!GetFileSizeEx(file->handle, &size)) {
        CloseHandle(file->handle);
        return "it is not a regular file";
    }
    file->size = (uint64_t)size.QuadPart;
    return NULL;
}

static bool jmb_file_map(jmb_file *file)
{
    HANDLE mapping = CreateFileMappingA(file->handle, NULL, PAGE_READONLY, 0, 0, NULL);
    if (!mapping) return false;
    file->mapping = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0);
    CloseHandle(mapping);
    return file->mapping != NULL;
}

static size_t jmb_file_read(void *user, uint64_t offset, void *dst, size_t size)
{
    jmb_file *file = (jmb_file *)user;
    size_t done = 0;
    while (done < size) {
        OVERLAPPED at;
        DWORD part = size - done > (1u << 30) ? (1u << 30) : (DWORD)(size - done), got = 0;
        memset(&at, 0, sizeof at);
        at.Offset = (DWORD)(offset + done);
        at.OffsetHigh = (DWORD)((offset + done) >> 32);
        if (!ReadFile(file->handle, (uint8_t *)dst + done, part, &got, &at) || got == 0) break;
        done += got;
    }
    return done;
}

static void jmb_file_close(jmb_file *file)
{
    CloseHandle(file->handle);
}

static void jmb_file_unmap(void *mapping, uint64_t size)
{
    (void)size;
    UnmapViewOfFile(mapping);
}

static uint64_t jmb_clock_us(void *user)
{
    LARGE_INTEGER now, frequency;
    (void)user;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&frequency);
    return (uint64_t)((double)now.QuadPart / (double)frequency.QuadPart * 1e6);
}

#elif defined(JMB_POSIX)

/* NULL, or why the file cannot be opened. */
static const char *jmb_file_open(jmb_file *file, const char *path)
{
    struct stat info;
    memset(file, 0, sizeof *file);
    do file->handle = open(path, O_RDONLY | O_NONBLOCK | JMB_CLOEXEC); /* a pipe must not block */
    while (file->handle < 0 && errno == EINTR);
    if (file->handle < 0)
        return errno == ENOENT ? "no such file" : errno == EACCES ? "no permission"
            : errno == EOVERFLOW ? "this build needs -D_FILE_OFFSET_BITS=64 for it" : "it cannot be read";
    if (fstat(file->handle, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size < 0) {
        close(file->handle);
        return "it is not a regular file";
    }
    file->size = (uint64_t)info.st_size;
    return NULL;
}

static bool jmb_file_map(jmb_file *file)
{
    void *mapping;
    if (JMB_NO_MMAP || file->size == 0 || file->size > SIZE_MAX) return false;
    mapping = mmap(NULL, (size_t)file->size, PROT_READ, MAP_SHARED, file->handle, 0);
    if (mapping == MAP_FAILED) return false;
    file->mapping = mapping;
    return true;
}

static size_t jmb_file_read(void *user, uint64_t offset, void *dst, size_t size)
{
    jmb_file *file = (jmb_file *)user;
    size_t done = 0;
    if (lseek(file->handle, (off_t)offset, SEEK_SET) < 0) return 0;
    while (done < size) {
        size_t part = size - done > ((size_t)1 << 30) ? (size_t)1 << 30 : size - done;
        ssize_t got = read(file->handle, (uint8_t *)dst + done, part);
        if (got < 0 && errno == EINTR) continue; /* by a signal of the host's */
        if (got <= 0) break;
        done += (size_t)got;
    }
    return done;
}

static void jmb_file_close(jmb_file *file)
{
    close(file->handle);
}

static void jmb_file_unmap(void *mapping, uint64_t size)
{
    munmap(mapping, (size_t)size);
}

static uint64_t jmb_clock_us(void *user)
{
    (void)user;
#if defined(CLOCK_MONOTONIC)
    {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
    }
#else /* -std=c99 hides clock_gettime */
    {
        struct timeval now;
        gettimeofday(&now, NULL);
        return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_usec;
    }
#endif
}

#else

/* NULL, or why the file cannot be opened. */
static const char *jmb_file_open(jmb_file *file, const char *path)
{
    long size;
    memset(file, 0, sizeof *file);
    file->handle = fopen(path, "rb");
    if (!file->handle) return "it cannot be read";
    if (fseek(file->handle, 0, SEEK_END) != 0 || (size = ftell(file->handle)) < 0) {
        fclose(file->handle);
        return "it is not a regular file";
    }
    file->size = (uint64_t)size;
    return NULL;
}

static bool jmb_file_map(jmb_file *file)
{
    (void)file;
    return false;
}

static size_t jmb_file_read(void *user, uint64_t offset, void *dst, size_t size)
{
    jmb_file *file = (jmb_file *)user;
    if (fseek(file->handle, (long)offset, SEEK_SET) != 0) return 0;
    return fread(dst, 1, size, file->handle);
}

static void jmb_file_close(jmb_file *file)
{
    fclose(file->handle);
}

static void jmb_file_unmap(void *mapping, uint64_t size)
{
    (void)mapping;
    (void)size;
}

static uint64_t jmb_clock_us(void *user)
{
    (void)user;
    return (uint64_t)((double)clock() / CLOCKS_PER_SEC * 1e6);
}

#endif

#if defined(MADV_HUGEPAGE)
#define JMB_HUGE_PAGES 1
#else
#define JMB_HUGE_PAGES 0
#endif

/* Asks for huge pages behind memory that nobody has touched. */
static void jmb_advise_huge(void *memory, size_t size)
{
#if JMB_HUGE_PAGES
    const uintptr_t page = 4096; /* a larger one makes the call fail, which changes nothing */
    uintptr_t first = ((uintptr_t)memory + page - 1) / page * page, end = ((uintptr_t)memory + size) / page * page;
    int before = errno;
    if (first < end) (void)madvise((void *)first, end - first, MADV_HUGEPAGE);
    errno = before;
#else
    (void)memory;
    (void)size;
#endif
}

/* While a thread waits for others: a few instructions, and now and then the rest of its time slice. */
JMB_UNUSED static void jmb_relax(uint32_t waits)
{
#if defined(_WIN32)
    if (waits % 1024 == 0) SwitchToThread();
    else YieldProcessor();
#else
#if defined(JMB_POSIX)
    if (waits % 1024 == 0) sched_yield();
#endif
#if JMB_X86 && defined(__GNUC__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ __volatile__("yield");
#endif
    (void)waits;
#endif
}

/* ===========================================================================================
 * >>hash - SHA-256 for identities (FIPS 180-4), and a fast 64-bit hash for tensor data
 * =========================================================================================== */

typedef struct jmb_sha256 {
    uint32_t state[8];
    uint64_t length; /* bytes */
    uint8_t block[64];
} jmb_sha256;

static uint32_t jmb_rotate_right(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

static void jmb_sha256_block(uint32_t state[8], const uint8_t *p)
{
    static const uint32_t k[64] = { 0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
        0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
        0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
        0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
        0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb,
        0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624,
        0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
        0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb,
        0xbef9a3f7, 0xc67178f2 };
    uint32_t w[64], s[8];
    int i;
    for (i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    for (i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        a = jmb_rotate_right(a, 7) ^ jmb_rotate_right(a, 18) ^ a >> 3;
        b = jmb_rotate_right(b, 17) ^ jmb_rotate_right(b, 19) ^ b >> 10;
        w[i] = w[i - 16] + a + w[i - 7] + b;
    }
    memcpy(s, state, sizeof s);
    for (i = 0; i < 64; i++) {
        uint32_t e = s[4], a = s[0], t1, t2;
        t1 = jmb_rotate_right(e, 6) ^ jmb_rotate_right(e, 11) ^ jmb_rotate_right(e, 25);
        t1 += s[7] + ((e & s[5]) ^ (~e & s[6])) + k[i] + w[i];
        t2 = jmb_rotate_right(a, 2) ^ jmb_rotate_right(a, 13) ^ jmb_rotate_right(a, 22);
        t2 += (a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]);
        memmove(s + 1, s, 7 * sizeof s[0]);
        s[4] += t1;
        s[0] = t1 + t2;
    }
    for (i = 0; i < 8; i++) state[i] += s[i];
}

static void jmb_sha256_begin(jmb_sha256 *hash)
{
    static const uint32_t start[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c,
        0x1f83d9ab, 0x5be0cd19 };
    memcpy(hash->state, start, sizeof start);
    hash->length = 0;
}

static void jmb_sha256_add(jmb_sha256 *hash, const void *data, size_t size)
{
    const uint8_t *p = (const uint8_t *)data;
    while (size > 0) {
        size_t used = (size_t)(hash->length & 63), part = 64 - used < size ? 64 - used : size;
        memcpy(hash->block + used, p, part);
        hash->length += part;
        p += part;
        size -= part;
        if (used + part == 64) jmb_sha256_block(hash->state, hash->block);
    }
}

static void jmb_sha256_end(jmb_sha256 *hash, uint8_t digest[32])
{
    uint8_t tail[72] = { 0x80 };
    uint64_t bits = hash->length * 8;
    size_t pad = (size_t)((119 - (hash->length & 63)) % 64 + 1);
    int i;
    for (i = 0; i < 8; i++) tail[pad + (size_t)i] = (uint8_t)(bits >> (56 - 8 * i));
    jmb_sha256_add(hash, tail, pad + 8);
    for (i = 0; i < 32; i++) digest[i] = (uint8_t)(hash->state[i / 4] >> (24 - 8 * (i % 4)));
}

enum { JMB_HASH_SEED = 0x6a616d62 };

static uint64_t jmb_hash_word(uint64_t h, uint64_t word)
{
    h = (h ^ word) * 0x9e3779b97f4a7c15u;
    return h << 31 | h >> 33;
}

/* h = rotate_left((h ^ word) * 0x9e3779b97f4a7c15, 31) over little-endian 64-bit words. Each step is a
 * bijection, so one changed word always changes the result. `size` is a multiple of 8. */
static uint64_t jmb_hash64(uint64_t h, const void *data, size_t size)
{
    const uint8_t *p = (const uint8_t *)data;
    size_t i;
    for (i = 0; i < size; i += 8) h = jmb_hash_word(h, jmb_load_u64(p + i));
    return h;
}

/* Every fourth word makes a hash of its own, so that one need not wait for the other; then these four are hashed. The
 * words behind the last four go to the first. */
static uint64_t jmb_hash64_by_four(uint64_t h, const void *data, size_t size)
{
    const uint8_t *p = (const uint8_t *)data;
    uint64_t a = h, b = h, c = h, d = h;
    size_t i;
    for (i = 0; size - i >= 32; i += 32) {
        a = jmb_hash_word(a, jmb_load_u64(p + i));
        b = jmb_hash_word(b, jmb_load_u64(p + i + 8));
        c = jmb_hash_word(c, jmb_load_u64(p + i + 16));
        d = jmb_hash_word(d, jmb_load_u64(p + i + 24));
    }
    a = jmb_hash64(a, p + i, size - i);
    return jmb_hash_word(jmb_hash_word(jmb_hash_word(jmb_hash_word(h, a), b), c), d);
}

/* ===========================================================================================
 * >>format - what a model file says: header, program of blocks, tensors
 *
 * The lists below are the format: reading, writing and checking all go through them. A model is a
 * list of blocks, each x = x + f(norm(x)) or one of the routings in jmb_input and jmb_output, over two
 * streams of `hidden` floats a token: x, which the head reads, and a, which shared blocks pass on.
 * =========================================================================================== */

enum { JMB_VERSION_MAJOR = 1, JMB_VERSION_MINOR = 0 };
enum { JMB_HEADER_BYTES = 256, JMB_BLOCK_BYTES = 128, JMB_ENTRY_BYTES = 64, JMB_NONE = 0xffff };

static const uint8_t jmb_magic[8] = { 0x89, 'J', 'M', 'B', '\r', '\n', 0x1a, '\n' };

/* type, name, byte offset in the header. Bytes not listed are zero. */
#define JMB_HEADER_FIELDS(X)                                                                  \
    X(u32, version, 8)             /* major | minor << 16: what a minor one adds is strings */ \
    X(u32, required, 12)           /* feature bits a reader must know: none so far */         \
    X(u64, file_size, 16)                                                                     \
    X(u64, data_offset, 24)                                                                   \
    /* 32..63: identity */                                                                    \
    X(u32, vocab, 64) X(u32, hidden, 68) X(u32, context, 72) X(u32, blocks, 76)               \
    X(u32, tensors, 80)                                                                       \
    X(u32, head, 84)               /* 0: logits from the embedding matrix, 1: own matrix */   \
    X(f32, eps, 88)                /* of the final norm */                                    \
    X(u32, type, 92)               /* storage type asked of the converter, for display */     \
    X(u32, bos, 96) X(u32, pad, 100) /* token or JMB_NO_TOKEN */                              \
    X(u32, eos_count, 104)                                                                    \
    X(u32, eos0, 108) X(u32, eos1, 112) X(u32, eos2, 116) X(u32, eos3, 120) X(u32, eos4, 124) \
    X(u32, eos5, 128) X(u32, eos6, 132) X(u32, eos7, 136)                                     \
    X(u64, strings_size, 144) X(u64, tokenizer_size, 152)

enum { JMB_MAX_EOS = 8 };
#define JMB_NO_TOKEN 0xffffffffu

/* Every field is four bytes, in this order from the record's start. */
#define JMB_BLOCK_FIELDS(X)                                                                \
    X(u32, kind) X(u32, unit)      /* block index under which its tensors are stored */    \
    X(u32, flags) X(u32, input) X(u32, output) X(u32, act)                                 \
    X(f32, eps)                    /* of the norm in front */                              \
    X(f32, inner_eps)              /* mamba, mamba2: of the norms inside */                \
    X(f32, scale)                  /* attention: of q.k */                                 \
    X(f32, dt_min) X(f32, dt_max)  /* mamba2: dt is clamped to this range */               \
    X(u32, heads) X(u32, kv_heads) X(u32, head_dim)                                        \
    X(u32, d_inner) X(u32, d_state) X(u32, d_conv) X(u32, dt_rank) X(u32, n_groups)        \
    X(u32, intermediate) X(u32, experts) X(u32, top_k)                        \
    X(u32, rank)                   /* of its own low-rank adapters, 0: none */

#define JMB_ENTRY_FIELDS(X)                                                                        \
    X(u16, role, 0) X(u16, unit, 2) X(u16, index, 4) X(u16, type, 6)                               \
    X(u32, rows, 8) X(u32, cols, 12) X(u64, offset, 16) X(u64, bytes, 24) X(u64, hash, 32)

typedef uint32_t jmb_u16, jmb_u32;
typedef uint64_t jmb_u64;
typedef float jmb_f32;

typedef struct jmb_header {
#define JMB_X(type, name, at) jmb_##type name;
    JMB_HEADER_FIELDS(JMB_X)
#undef JMB_X
    uint8_t identity[32];
} jmb_header;

typedef struct jmb_block {
#define JMB_X(type, name) jmb_##type name;
    JMB_BLOCK_FIELDS(JMB_X)
#undef JMB_X
} jmb_block;

enum { /* place of each field, in units of four bytes */
#define JMB_X(type, name) JMB_AT_##name,
    JMB_BLOCK_FIELDS(JMB_X)
#undef JMB_X
    JMB_AT_END
};

enum { JMB_ATTENTION = 1, JMB_MAMBA, JMB_MLP, JMB_MOE, JMB_MAMBA2, JMB_LINEAR, JMB_KINDS };
static const char *const jmb_kind_names[] = { "", "attention", "mamba", "mlp", "moe", "mamba2", "linear" };

enum { /* jmb_block.flags */
    JMB_BIAS = 1,        /* attention: q, k, v, o; mamba, mamba2: in and out projections; mlp: all */
    JMB_CONV_BIAS = 2,   /* mamba, mamba2 */
    JMB_DT_NORM = 4,     /* mamba: norms on dt, B and C */
    JMB_ROPE = 8,        /* attention: rotates q and k by tensor rope */
    JMB_RENORMALISE = 16 /* moe: divide the chosen weights by their sum */
};
enum { JMB_ACT_SILU = 1, JMB_ACT_GELU }; /* jmb_block.act, of convolution or mlp; gelu is the exact one */
/* jmb_block.input, what the norm reads: x, a, x beside the embedding e of the token, or x + a */
enum { JMB_FROM_X = 0, JMB_FROM_A, JMB_FROM_X_AND_E, JMB_FROM_X_PLUS_A, JMB_INPUTS };
enum { JMB_ADD_TO_X = 0, JMB_SET_A, JMB_OUTPUTS }; /* jmb_block.output */

enum { JMB_F32 = 0, JMB_F16, JMB_BF16, JMB_Q8, JMB_Q4, JMB_TYPES }; /* by falling precision */
static const char *const jmb_type_names[] = { "f32", "f16", "bf16", "q8", "q4" };

/* The 16 levels of q4, plus 128: fitted to Gaussian and heavier-tailed weights (Lloyd-Max over blocks of
 * 32 with a free scale; tests/fit_levels.py). */
static const uint8_t jmb_q4_levels[16] = { 1, 36, 57, 73, 87, 99, 110, 121, 131, 142, 153, 166, 180, 197, 217, 242 };

/* role, name, how it is stored: L a linear, in any type; M never below q8; H never below 16 bits; F always
 * f32; G, J and P like L, H and F for two matrices (gate, up) in alternating panels. *_A and *_B are
 * low-rank adapters: W n becomes W n + B (A n). */
#define JMB_ROLES(X)                                                                             \
    X(EMBED, "embed", M) X(HEAD, "head", M) X(FINAL_NORM, "final_norm", F)                       \
    X(NORM, "norm", F)                                                                           \
    X(Q, "q", L) X(K, "k", L) X(V, "v", L) X(O, "o", L)                                          \
    X(Q_A, "q_a", M) X(K_A, "k_a", M) X(V_A, "v_a", M)                                           \
    X(Q_B, "q_b", H) X(K_B, "k_b", H) X(V_B, "v_b", H)                                           \
    X(Q_BIAS, "q_bias", F) X(K_BIAS, "k_bias", F) X(V_BIAS, "v_bias", F) X(O_BIAS, "o_bias", F)  \
    X(ROPE, "rope", F)                                                                           \
    X(U, "u", L) X(Z, "z", L) X(U_BIAS, "u_bias", F) X(Z_BIAS, "z_bias", F)                      \
    X(CONV, "conv", F) X(CONV_BIAS, "conv_bias", F)                                              \
    X(CONV_B, "conv_b", F) X(CONV_B_BIAS, "conv_b_bias", F)                                      \
    X(CONV_C, "conv_c", F) X(CONV_C_BIAS, "conv_c_bias", F)                                      \
    X(DT_LOW, "dt_low", M) X(B, "b", M) X(C, "c", M)                                             \
    X(B_BIAS, "b_bias", F) X(C_BIAS, "c_bias", F)                                                \
    X(DT_NORM, "dt_norm", F) X(B_NORM, "b_norm", F) X(C_NORM, "c_norm", F)                       \
    X(DT, "dt", M) X(DT_BIAS, "dt_bias", F) X(A, "a", F) X(D, "d", F)                            \
    X(GATE_NORM, "gate_norm", F)                                                                 \
    X(OUT, "out", L) X(OUT_BIAS, "out_bias", F)                                                  \
    X(ROUTER, "router", F)                                                                       \
    X(GATE_UP, "gate_up", G) X(GATE_UP_BIAS, "gate_up_bias", P) X(DOWN, "down", L)               \
    X(DOWN_BIAS, "down_bias", F) X(GATE_UP_A, "gate_up_a", M) X(GATE_UP_B, "gate_up_b", J)       \
    X(LINEAR, "linear", L)

enum {
#define JMB_X(role, name, store) JMB_ROLE_##role,
    JMB_ROLES(JMB_X)
#undef JMB_X
    JMB_ROLE_COUNT
};

typedef struct jmb_role {
    const char *name;
    uint32_t lowest; /* the least precise type that it is stored in */
    bool paired;
} jmb_role;

#define JMB_STORE_L JMB_Q4, false
#define JMB_STORE_M JMB_Q8, false
#define JMB_STORE_H JMB_BF16, false
#define JMB_STORE_F JMB_F32, false
#define JMB_STORE_G JMB_Q4, true
#define JMB_STORE_J JMB_BF16, true
#define JMB_STORE_P JMB_F32, true
static const jmb_role jmb_roles[] = {
#define JMB_X(role, name, store) { name, JMB_STORE_##store },
    JMB_ROLES(JMB_X)
#undef JMB_X
};

typedef struct jmb_tensor {
    uint32_t role, unit, index; /* index: expert, or head of a mamba block */
    uint32_t type, rows, cols;
    uint64_t offset, bytes, hash;
    const uint8_t *data;
} jmb_tensor;

/* Bytes of one 16-row panel. */
static uint64_t jmb_panel_bytes(uint32_t type, uint64_t cols)
{
    switch (type) {
    case JMB_F32: return cols * 64;
    case JMB_Q8: return jmb_round_up(jmb_round_up(cols, 64) * 16 + jmb_round_up(cols, 64) / 64 * 32, 64);
    case JMB_Q4: return jmb_round_up(cols, 64) * 8 + jmb_round_up(cols, 64) / 32 * 32;
    default: return jmb_round_up(cols, 2) * 32;
    }
}

static uint64_t jmb_tensor_bytes(const jmb_tensor *t)
{
    uint64_t panels = jmb_mul(((uint64_t)t->rows + 15) / 16, jmb_roles[t->role].paired ? 2 : 1);
    return jmb_mul(panels, jmb_panel_bytes(t->type, t->cols));
}

/* "3.gate_up.7": unit, role, and the expert or head where there are several. */
static const char *jmb_tensor_name(const jmb_tensor *t, char name[64])
{
    const char *role = jmb_roles[t->role].name;
    if (t->unit == JMB_NONE) jmb_format(name, 64, "%s", role);
    else if (t->index) jmb_format(name, 64, "%u.%s.%u", t->unit, role, t->index);
    else jmb_format(name, 64, "%u.%s", t->unit, role);
    return name;
}

typedef struct jmb_tensor_list {
    jmb_tensor *items; /* NULL: only count */
    uint32_t count, unit, type;
} jmb_tensor_list;

/* The type that a tensor of this role gets when linears are stored as `type`. */
static uint32_t jmb_role_type(uint32_t role, uint32_t type)
{
    return type > jmb_roles[role].lowest ? jmb_roles[role].lowest : type;
}

static void jmb_list_add(jmb_tensor_list *list, uint32_t role, uint32_t index, uint64_t rows, uint64_t cols)
{
    if (list->items) {
        jmb_tensor *t = &list->items[list->count];
        memset(t, 0, sizeof *t);
        t->role = role;
        t->unit = list->unit;
        t->index = index;
        t->rows = (uint32_t)rows;
        t->cols = (uint32_t)cols;
        t->type = jmb_role_type(role, list->type);
        t->bytes = jmb_tensor_bytes(t);
    }
    list->count++;
}

/* Width of what a block reads: x beside the embedding e is twice as wide. */
static uint32_t jmb_input_width(const jmb_block *b, uint32_t hidden)
{
    return b->input == JMB_FROM_X_AND_E ? 2 * hidden : hidden;
}

static void jmb_list_attention(jmb_tensor_list *list, const jmb_block *b, uint32_t hidden)
{
    uint32_t q = b->heads * b->head_dim, kv = b->kv_heads * b->head_dim, width = jmb_input_width(b, hidden);
    jmb_list_add(list, JMB_ROLE_Q, 0, q, width);
    jmb_list_add(list, JMB_ROLE_K, 0, kv, width);
    jmb_list_add(list, JMB_ROLE_V, 0, kv, width);
    if (b->flags & JMB_BIAS) {
        jmb_list_add(list, JMB_ROLE_Q_BIAS, 0, q, 1);
        jmb_list_add(list, JMB_ROLE_K_BIAS, 0, kv, 1);
        jmb_list_add(list, JMB_ROLE_V_BIAS, 0, kv, 1);
    }
    if (b->flags & JMB_ROPE) jmb_list_add(list, JMB_ROLE_ROPE, 0, b->head_dim / 2, 1);
    jmb_list_add(list, JMB_ROLE_O, 0, hidden, q);
    if (b->flags & JMB_BIAS) jmb_list_add(list, JMB_ROLE_O_BIAS, 0, hidden, 1);
}

/* A mamba block of several heads has x and dt projections of its own for each, over its share of the
 * channels. */
static void jmb_list_mamba_heads(jmb_tensor_list *list, const jmb_block *b)
{
    uint32_t width = b->d_inner / b->heads, h;
    for (h = 0; h < b->heads; h++) {
        jmb_list_add(list, JMB_ROLE_DT_LOW, h, b->dt_rank, width);
        jmb_list_add(list, JMB_ROLE_B, h, b->d_state, width);
        jmb_list_add(list, JMB_ROLE_C, h, b->d_state, width);
    }
    if (b->flags & JMB_DT_NORM) {
        jmb_list_add(list, JMB_ROLE_DT_NORM, 0, b->dt_rank, 1);
        jmb_list_add(list, JMB_ROLE_B_NORM, 0, b->d_state, 1);
        jmb_list_add(list, JMB_ROLE_C_NORM, 0, b->d_state, 1);
    }
    for (h = 0; h < b->heads; h++) jmb_list_add(list, JMB_ROLE_DT, h, width, b->dt_rank);
}

static void jmb_list_mamba(jmb_tensor_list *list, const jmb_block *b, uint32_t hidden)
{
    uint32_t width = jmb_input_width(b, hidden);
    jmb_list_add(list, JMB_ROLE_U, 0, b->d_inner, width);
    jmb_list_add(list, JMB_ROLE_Z, 0, b->d_inner, width);
    if (b->flags & JMB_BIAS) {
        jmb_list_add(list, JMB_ROLE_U_BIAS, 0, b->d_inner, 1);
        jmb_list_add(list, JMB_ROLE_Z_BIAS, 0, b->d_inner, 1);
    }
    jmb_list_add(list, JMB_ROLE_CONV, 0, b->d_inner, b->d_conv);
    if (b->flags & JMB_CONV_BIAS) jmb_list_add(list, JMB_ROLE_CONV_BIAS, 0, b->d_inner, 1);
    jmb_list_mamba_heads(list, b);
    jmb_list_add(list, JMB_ROLE_DT_BIAS, 0, b->d_inner, 1);
    jmb_list_add(list, JMB_ROLE_A, 0, b->d_inner, b->d_state);
    jmb_list_add(list, JMB_ROLE_D, 0, b->d_inner, 1);
    jmb_list_add(list, JMB_ROLE_OUT, 0, hidden, b->d_inner);
    if (b->flags & JMB_BIAS) jmb_list_add(list, JMB_ROLE_OUT_BIAS, 0, hidden, 1);
}

static void jmb_list_mamba2(jmb_tensor_list *list, const jmb_block *b, uint32_t hidden)
{
    uint32_t width = jmb_input_width(b, hidden);
    uint32_t bc = b->n_groups * b->d_state, i;
    const uint32_t rows[3] = { b->d_inner, bc, bc };
    static const uint32_t linears[3] = { JMB_ROLE_U, JMB_ROLE_B, JMB_ROLE_C };
    static const uint32_t biases[3] = { JMB_ROLE_U_BIAS, JMB_ROLE_B_BIAS, JMB_ROLE_C_BIAS };
    static const uint32_t convs[3] = { JMB_ROLE_CONV, JMB_ROLE_CONV_B, JMB_ROLE_CONV_C };
    static const uint32_t conv_biases[3] = { JMB_ROLE_CONV_BIAS, JMB_ROLE_CONV_B_BIAS, JMB_ROLE_CONV_C_BIAS };
    jmb_list_add(list, JMB_ROLE_Z, 0, b->d_inner, width);
    if (b->flags & JMB_BIAS) jmb_list_add(list, JMB_ROLE_Z_BIAS, 0, b->d_inner, 1);
    for (i = 0; i < 3; i++) {
        jmb_list_add(list, linears[i], 0, rows[i], width);
        if (b->flags & JMB_BIAS) jmb_list_add(list, biases[i], 0, rows[i], 1);
    }
    jmb_list_add(list, JMB_ROLE_DT, 0, b->heads, width);
    jmb_list_add(list, JMB_ROLE_DT_BIAS, 0, b->heads, 1);
    for (i = 0; i < 3; i++) {
        jmb_list_add(list, convs[i], 0, rows[i], b->d_conv);
        if (b->flags & JMB_CONV_BIAS) jmb_list_add(list, conv_biases[i], 0, rows[i], 1);
    }
    jmb_list_add(list, JMB_ROLE_A, 0, b->heads, 1);
    jmb_list_add(list, JMB_ROLE_D, 0, b->heads, 1);
    jmb_list_add(list, JMB_ROLE_GATE_NORM, 0, b->d_inner, 1);
    jmb_list_add(list, JMB_ROLE_OUT, 0, hidden, b->d_inner);
    if (b->flags & JMB_BIAS) jmb_list_add(list, JMB_ROLE_OUT_BIAS, 0, hidden, 1);
}

static void jmb_list_mlp(jmb_tensor_list *list, const jmb_block *b, uint32_t hidden)
{
    uint32_t width = jmb_input_width(b, hidden);
    jmb_list_add(list, JMB_ROLE_GATE_UP, 0, b->intermediate, width);
    if (b->flags & JMB_BIAS) jmb_list_add(list, JMB_ROLE_GATE_UP_BIAS, 0, b->intermediate, 1);
    jmb_list_add(list, JMB_ROLE_DOWN, 0, hidden, b->intermediate);
    if (b->flags & JMB_BIAS) jmb_list_add(list, JMB_ROLE_DOWN_BIAS, 0, hidden, 1);
}

static void jmb_list_moe(jmb_tensor_list *list, const jmb_block *b, uint32_t hidden)
{
    uint32_t width = jmb_input_width(b, hidden);
    uint32_t e;
    jmb_list_add(list, JMB_ROLE_ROUTER, 0, b->experts, width);
    for (e = 0; e < b->experts; e++) {
        jmb_list_add(list, JMB_ROLE_GATE_UP, e, b->intermediate, width);
        jmb_list_add(list, JMB_ROLE_DOWN, e, hidden, b->intermediate);
    }
}

/* Low-rank adapters are a block's own even where it shares its other tensors. */
static void jmb_list_adapters(jmb_tensor_list *list, const jmb_block *b, uint32_t hidden)
{
    uint32_t q, kv, width = jmb_input_width(b, hidden);
    if (b->kind == JMB_MLP) {
        jmb_list_add(list, JMB_ROLE_GATE_UP_A, 0, b->rank, width);
        jmb_list_add(list, JMB_ROLE_GATE_UP_B, 0, b->intermediate, b->rank);
        return;
    }
    q = b->heads * b->head_dim;
    kv = b->kv_heads * b->head_dim;
    jmb_list_add(list, JMB_ROLE_Q_A, 0, b->rank, width);
    jmb_list_add(list, JMB_ROLE_K_A, 0, b->rank, width);
    jmb_list_add(list, JMB_ROLE_V_A, 0, b->rank, width);
    jmb_list_add(list, JMB_ROLE_Q_B, 0, q, b->rank);
    jmb_list_add(list, JMB_ROLE_K_B, 0, kv, b->rank);
    jmb_list_add(list, JMB_ROLE_V_B, 0, kv, b->rank);
}

static void jmb_list_block(jmb_tensor_list *list, const jmb_block *b, uint32_t hidden)
{
    if (b->kind != JMB_LINEAR) jmb_list_add(list, JMB_ROLE_NORM, 0, jmb_input_width(b, hidden), 1);
    switch (b->kind) {
    case JMB_ATTENTION: jmb_list_attention(list, b, hidden); break;
    case JMB_MAMBA: jmb_list_mamba(list, b, hidden); break;
    case JMB_MLP: jmb_list_mlp(list, b, hidden); break;
    case JMB_MOE: jmb_list_moe(list, b, hidden); break;
    case JMB_MAMBA2: jmb_list_mamba2(list, b, hidden); break;
    default: jmb_list_add(list, JMB_ROLE_LINEAR, 0, hidden, hidden); break;
    }
}

/* Every tensor of the program in file order, which is the order of use; each unit once, where it is
 * first used. Returns how many. Linears get `type`. */
static uint32_t jmb_list_tensors(const jmb_header *h, const jmb_block *blocks, uint32_t type, jmb_tensor *items)
{
    jmb_tensor_list list = { items, 0, JMB_NONE, type };
    uint32_t i;
    jmb_list_add(&list, JMB_ROLE_EMBED, 0, h->vocab, h->hidden);
    for (i = 0; i < h->blocks; i++) {
        list.unit = i;
        if (blocks[i].unit == i) jmb_list_block(&list, &blocks[i], h->hidden);
        if (blocks[i].rank) jmb_list_adapters(&list, &blocks[i], h->hidden);
    }
    list.unit = JMB_NONE;
    jmb_list_add(&list, JMB_ROLE_FINAL_NORM, 0, h->hidden, 1);
    if (h->head) jmb_list_add(&list, JMB_ROLE_HEAD, 0, h->vocab, h->hidden);
    return list.count;
}

/* Gives each tensor its offset from `start`; returns the end of the last, the size of the file. */
static uint64_t jmb_place_tensors(jmb_tensor *items, uint32_t count, uint64_t start)
{
    uint32_t i;
    for (i = 0; i < count; i++) {
        items[i].offset = start;
        start = jmb_add(start, items[i].bytes);
    }
    return start;
}

/* Where each part of a file begins, from the sizes in its header. */
typedef struct jmb_parts {
    uint64_t program, directory, strings, tokenizer, data;
} jmb_parts;

static jmb_parts jmb_place_parts(const jmb_header *h)
{
    jmb_parts p;
    p.program = JMB_HEADER_BYTES;
    p.directory = p.program + (uint64_t)h->blocks * JMB_BLOCK_BYTES;
    p.strings = p.directory + (uint64_t)h->tensors * JMB_ENTRY_BYTES;
    p.tokenizer = jmb_round_up(jmb_add(p.strings, h->strings_size), 64);
    p.data = jmb_round_up(jmb_add(p.tokenizer, h->tokenizer_size), 64);
    return p;
}

/* ---- reading a header and a program -------------------------------------------------------- */

#define JMB_READ_u16(p) jmb_load_u16(p)
#define JMB_READ_u32(p) jmb_load_u32(p)
#define JMB_READ_u64(p) jmb_load_u64(p)
#define JMB_READ_f32(p) jmb_load_f32(p)

static void jmb_read_header(jmb_header *h, const uint8_t *p)
{
#define JMB_X(type, name, at) h->name = JMB_READ_##type(p + (at));
    JMB_HEADER_FIELDS(JMB_X)
#undef JMB_X
    memcpy(h->identity, p + 32, 32);
}

static void jmb_read_block(jmb_block *b, const uint8_t *p)
{
#define JMB_X(type, name)      \
    b->name = JMB_READ_##type(p); \
    p += 4;
    JMB_BLOCK_FIELDS(JMB_X)
#undef JMB_X
}

/* A range check that names the value. */
static jamba_result jmb_check_range(
    jamba_error *error, const char *what, uint32_t value, uint32_t low, uint32_t high, uint64_t at)
{
    if (value >= low && value <= high) return JAMBA_OK;
    return jmb_fail(error, JAMBA_ERR_FORMAT, at, "%s is %u, outside %u to %u", what, value, low, high);
}

static jamba_result jmb_check_positive(jamba_error *error, const char *what, float value, uint64_t at)
{
    if (jmb_within(value, jmb_float_of(1), FLT_MAX)) return JAMBA_OK;
    return jmb_fail(error, JAMBA_ERR_FORMAT, at, "%s is not a positive number", what);
}

enum {
    JMB_MAX_VOCAB = 1 << 20,
    JMB_MAX_HIDDEN = 1 << 16,
    JMB_MAX_INNER = 1 << 17,
    JMB_MAX_CONTEXT = 1 << 24,
    JMB_MAX_BLOCKS = 4096,
    JMB_MAX_HEADS = 1024,
    JMB_MAX_MAMBA_HEADS = 32, /* each takes operations and tensors of its own */
    JMB_MAX_OPERATIONS = 1 << 16, /* of the plan: blocks that share their tensors cost the file next to nothing */
    JMB_MAX_STRINGS = 4096,
    JMB_MAX_HEAD_DIM = 1024,
    JMB_MAX_STATE = 1024,
    JMB_MAX_CONV = 16,
    JMB_MAX_EXPERTS = 1024,
    JMB_MAX_TENSORS = 1 << 17,
    JMB_MAX_METADATA = 1 << 28
};

static uint32_t jmb_eos(const jmb_header *h, uint32_t i)
{
    const uint32_t eos[JMB_MAX_EOS] = { h->eos0, h->eos1, h->eos2, h->eos3, h->eos4, h->eos5, h->eos6, h->eos7 };
    return eos[i];
}

static jamba_result jmb_check_token(
    jamba_error *error, const char *what, uint32_t token, uint32_t vocab, uint64_t at)
{
    if (token == JMB_NO_TOKEN || token < vocab) return JAMBA_OK;
    return jmb_fail(error, JAMBA_ERR_FORMAT, at, "%s is token %u, outside the vocabulary", what, token);
}

static jamba_result jmb_check_header(const jmb_header *h, jamba_error *error)
{
    uint32_t i;
    if ((h->version & 0xffff) != JMB_VERSION_MAJOR)
        return jmb_fail(error, JAMBA_ERR_UNSUPPORTED, 8, "file format %u, but this is %u: convert the model again",
            h->version & 0xffff, (unsigned)JMB_VERSION_MAJOR);
    if (h->required)
        return jmb_fail(error, JAMBA_ERR_UNSUPPORTED, 12, "the file needs a newer jamba.h (features %u)", h->required);
    JMB_TRY(jmb_check_range(error, "vocab", h->vocab, 1, JMB_MAX_VOCAB, 64));
    JMB_TRY(jmb_check_range(error, "hidden", h->hidden, 1, JMB_MAX_HIDDEN, 68));
    JMB_TRY(jmb_check_range(error, "context", h->context, 1, JMB_MAX_CONTEXT, 72));
    JMB_TRY(jmb_check_range(error, "blocks", h->blocks, 1, JMB_MAX_BLOCKS, 76));
    JMB_TRY(jmb_check_range(error, "tensors", h->tensors, 1, JMB_MAX_TENSORS, 80));
    JMB_TRY(jmb_check_range(error, "head", h->head, 0, 1, 84));
    JMB_TRY(jmb_check_positive(error, "eps", h->eps, 88));
    JMB_TRY(jmb_check_range(error, "type", h->type, 0, JMB_TYPES - 1, 92));
    JMB_TRY(jmb_check_token(error, "bos", h->bos, h->vocab, 96));
    JMB_TRY(jmb_check_token(error, "pad", h->pad, h->vocab, 100));
    JMB_TRY(jmb_check_range(error, "eos_count", h->eos_count, 0, JMB_MAX_EOS, 104));
    for (i = 0; i < h->eos_count; i++)
        JMB_TRY(jmb_check_range(error, "eos", jmb_eos(h, i), 0, h->vocab - 1, 108 + 4 * (uint64_t)i));
    return JAMBA_OK;
}

static jamba_result jmb_check_attention(const jmb_block *b, uint64_t at, jamba_error *error)
{
    JMB_TRY(jmb_check_range(error, "heads", b->heads, 1, JMB_MAX_HEADS, at + 4 * JMB_AT_heads));
    JMB_TRY(jmb_check_range(error, "kv_heads", b->kv_heads, 1, b->heads, at + 4 * JMB_AT_kv_heads));
    JMB_TRY(jmb_check_range(error, "head_dim", b->head_dim, 1, JMB_MAX_HEAD_DIM, at + 4 * JMB_AT_head_dim));
    if (b->heads % b->kv_heads)
        return jmb_fail(error, JAMBA_ERR_FORMAT, at, "%u heads do not share %u kv_heads evenly", b->heads, b->kv_heads);
    if ((b->flags & JMB_ROPE) && b->head_dim % 2)
        return jmb_fail(error, JAMBA_ERR_FORMAT, at, "head_dim %u is odd, rope needs pairs", b->head_dim);
    return jmb_check_positive(error, "scale", b->scale, at + 4 * JMB_AT_scale);
}

static jamba_result jmb_check_mamba2(const jmb_block *b, uint64_t at, jamba_error *error)
{
    JMB_TRY(jmb_check_range(error, "n_groups", b->n_groups, 1, b->heads, at + 4 * JMB_AT_n_groups));
    if (b->heads % b->n_groups)
        return jmb_fail(error, JAMBA_ERR_FORMAT, at, "%u heads do not share %u groups evenly", b->heads, b->n_groups);
    if (jmb_within(b->dt_min, 0, FLT_MAX) && jmb_within(b->dt_max, b->dt_min, jmb_float_of(0x7f800000u)))
        return JAMBA_OK;
    return jmb_fail(error, JAMBA_ERR_FORMAT, at, "dt_min and dt_max are not a range");
}

/* mamba and mamba2 */
static jamba_result jmb_check_mamba(const jmb_block *b, uint64_t at, jamba_error *error)
{
    uint32_t most_heads = b->kind == JMB_MAMBA ? (uint32_t)JMB_MAX_MAMBA_HEADS : (uint32_t)JMB_MAX_HEADS;
    JMB_TRY(jmb_check_range(error, "d_inner", b->d_inner, 1, JMB_MAX_INNER, at + 4 * JMB_AT_d_inner));
    JMB_TRY(jmb_check_range(error, "d_state", b->d_state, 1, JMB_MAX_STATE, at + 4 * JMB_AT_d_state));
    JMB_TRY(jmb_check_range(error, "d_conv", b->d_conv, 1, JMB_MAX_CONV, at + 4 * JMB_AT_d_conv));
    JMB_TRY(jmb_check_range(error, "heads", b->heads, 1, most_heads, at + 4 * JMB_AT_heads));
    JMB_TRY(jmb_check_positive(error, "inner_eps", b->inner_eps, at + 4 * JMB_AT_inner_eps));
    if (b->d_inner % b->heads)
        return jmb_fail(error, JAMBA_ERR_FORMAT, at, "d_inner %u is not a multiple of %u heads", b->d_inner, b->heads);
    if (b->kind == JMB_MAMBA2) return jmb_check_mamba2(b, at, error);
    if ((b->flags & JMB_DT_NORM) && b->heads > 1)
        return jmb_fail(error, JAMBA_ERR_UNSUPPORTED, at, "norms on dt, B and C of several heads");
    return jmb_check_range(error, "dt_rank", b->dt_rank, 1, JMB_MAX_HIDDEN, at + 4 * JMB_AT_dt_rank);
}

static jamba_result jmb_check_mlp(const jmb_block *b, uint64_t at, jamba_error *error)
{
    JMB_TRY(jmb_check_range(error, "intermediate", b->intermediate, 1, JMB_MAX_INNER, at + 4 * JMB_AT_intermediate));
    if (b->kind != JMB_MOE) return JAMBA_OK;
    JMB_TRY(jmb_check_range(error, "experts", b->experts, 1, JMB_MAX_EXPERTS, at + 4 * JMB_AT_experts));
    if (b->output != JMB_ADD_TO_X)
        return jmb_fail(error, JAMBA_ERR_UNSUPPORTED, at + 4 * JMB_AT_output, "a moe block must add to stream x");
    return jmb_check_range(error, "top_k", b->top_k, 1, b->experts, at + 4 * JMB_AT_top_k);
}

static jamba_result jmb_check_linear(const jmb_block *b, uint64_t at, jamba_error *error)
{
    if (b->input == JMB_FROM_A && b->output == JMB_SET_A) return JAMBA_OK;
    return jmb_fail(error, JAMBA_ERR_UNSUPPORTED, at + 4 * JMB_AT_input, "a linear block must read and write stream a");
}

static jamba_result jmb_check_adapters(const jmb_block *b, uint64_t at, jamba_error *error)
{
    if (b->kind != JMB_ATTENTION && b->kind != JMB_MLP)
        return jmb_fail(error, JAMBA_ERR_UNSUPPORTED, at, "adapters in a %s block", jmb_kind_names[b->kind]);
    return jmb_check_range(error, "rank", b->rank, 1, JMB_MAX_HIDDEN, at + 4 * JMB_AT_rank);
}

static uint32_t jmb_known_flags(uint32_t kind)
{
    switch (kind) {
    case JMB_ATTENTION: return JMB_BIAS | JMB_ROPE;
    case JMB_MAMBA: return JMB_BIAS | JMB_CONV_BIAS | JMB_DT_NORM;
    case JMB_MAMBA2: return JMB_BIAS | JMB_CONV_BIAS;
    case JMB_MLP: return JMB_BIAS;
    case JMB_MOE: return JMB_RENORMALISE;
    default: return 0;
    }
}

/* A block may use the tensors of an earlier one that has its own and is like it in all but its place. */
static bool jmb_may_share(const jmb_block *b, const jmb_block *owner)
{
    return b->kind == owner->kind && b->unit == owner->unit
        && memcmp(&b->flags, &owner->flags, sizeof *b - offsetof(jmb_block, flags)) == 0;
}

static jamba_result jmb_check_block(const jmb_block *blocks, uint32_t i, jamba_error *error)
{
    const jmb_block *b = &blocks[i];
    uint64_t at = JMB_HEADER_BYTES + (uint64_t)i * JMB_BLOCK_BYTES;
    JMB_TRY(jmb_check_range(error, "block kind", b->kind, 1, JMB_KINDS - 1, at));
    JMB_TRY(jmb_check_range(error, "unit", b->unit, 0, i, at + 4 * JMB_AT_unit));
    if (b->flags & ~jmb_known_flags(b->kind))
        return jmb_fail(error, JAMBA_ERR_FORMAT, at + 4 * JMB_AT_flags, "unknown flags %u in block %u", b->flags, i);
    JMB_TRY(jmb_check_range(error, "input", b->input, 0, JMB_INPUTS - 1, at + 4 * JMB_AT_input));
    JMB_TRY(jmb_check_range(error, "output", b->output, 0, JMB_OUTPUTS - 1, at + 4 * JMB_AT_output));
    JMB_TRY(jmb_check_range(error, "act", b->act, JMB_ACT_SILU, JMB_ACT_GELU, at + 4 * JMB_AT_act));
    JMB_TRY(jmb_check_positive(error, "eps", b->eps, at + 4 * JMB_AT_eps));
    if (b->rank) JMB_TRY(jmb_check_adapters(b, at, error));
    if (!jmb_may_share(b, &blocks[b->unit]))
        return jmb_fail(error, JAMBA_ERR_FORMAT, at, "block %u has the tensors of block %u, but differs", i, b->unit);
    switch (b->kind) {
    case JMB_ATTENTION: return jmb_check_attention(b, at, error);
    case JMB_MAMBA:
    case JMB_MAMBA2: return jmb_check_mamba(b, at, error);
    case JMB_LINEAR: return jmb_check_linear(b, at, error);
    default: return jmb_check_mlp(b, at, error);
    }
}

/* ---- the whole file ------------------------------------------------------------------------ */

typedef struct jmb_string {
    const char *key, *value; /* terminated copies */
} jmb_string;

/* The metadata of one model file, checked and copied: the file is not read again for it. */
typedef struct jmb_metadata {
    jmb_header header;
    jmb_parts parts;
    jmb_block *blocks;
    jmb_tensor *tensors;
    jmb_string *strings;
    uint32_t string_count;
} jmb_metadata;

static jamba_result jmb_check_zero(const uint8_t *p, uint64_t from, uint64_t to, jamba_error *error)
{
    for (; from < to; from++)
        if (p[from]) return jmb_fail(error, JAMBA_ERR_FORMAT, from, "a byte that must be zero is not");
    return JAMBA_OK;
}

static jamba_result jmb_no_memory(jamba_error *error)
{
    return jmb_fail(error, JAMBA_ERR_MEMORY, 0, "out of memory");
}

static jamba_result jmb_parse_header(jmb_metadata *m, const uint8_t *p, uint64_t size, jamba_error *error)
{
    jmb_header *h = &m->header;
    if (size < JMB_HEADER_BYTES)
        return jmb_fail(error, JAMBA_ERR_FORMAT, size, "too short for a model file (%l bytes)", size);
    if (memcmp(p, jmb_magic, 8) != 0)
        return jmb_fail(error, JAMBA_ERR_FORMAT, 0, "not a .jamba file: make one with build/convert");
    jmb_read_header(h, p);
    JMB_TRY(jmb_check_header(h, error));
    JMB_TRY(jmb_check_zero(p, 140, 144, error));
    JMB_TRY(jmb_check_zero(p, 160, JMB_HEADER_BYTES, error));
    if (h->file_size != size)
        return jmb_fail(error, JAMBA_ERR_FORMAT, 16, "the file has %l bytes and should have %l: copy it again", size,
            h->file_size);
    m->parts = jmb_place_parts(h);
    if (m->parts.data != h->data_offset || h->data_offset > size || h->data_offset > JMB_MAX_METADATA)
        return jmb_fail(error, JAMBA_ERR_FORMAT, 24, "data at %l does not follow the metadata", h->data_offset);
    return JAMBA_OK;
}

/* SHA-256 of the metadata with the identity itself taken as zero. */
static void jmb_identity(const uint8_t *p, uint64_t data_offset, uint8_t digest[32])
{
    static const uint8_t zero[32] = { 0 };
    jmb_sha256 hash;
    jmb_sha256_begin(&hash);
    jmb_sha256_add(&hash, p, 32);
    jmb_sha256_add(&hash, zero, 32);
    jmb_sha256_add(&hash, p + 64, (size_t)data_offset - 64);
    jmb_sha256_end(&hash, digest);
}

static jamba_result jmb_check_identity(const jmb_metadata *m, const uint8_t *p, jamba_error *error)
{
    uint8_t digest[32];
    jmb_identity(p, m->header.data_offset, digest);
    if (memcmp(digest, m->header.identity, 32) != 0)
        return jmb_fail(error, JAMBA_ERR_FORMAT, 32, "the metadata is damaged (its hash differs): copy the file again");
    return JAMBA_OK;
}

/* Stream a holds nothing until a block writes it. */
static jamba_result jmb_check_streams(const jmb_metadata *m, jamba_error *error)
{
    bool set = false;
    uint32_t i;
    for (i = 0; i < m->header.blocks; i++) {
        const jmb_block *b = &m->blocks[i];
        uint64_t at = m->parts.program + (uint64_t)i * JMB_BLOCK_BYTES + 4 * JMB_AT_input;
        if (!set && (b->input == JMB_FROM_A || b->input == JMB_FROM_X_PLUS_A))
            return jmb_fail(error, JAMBA_ERR_FORMAT, at, "block %u reads stream a before any block sets it", i);
        set = set || b->output == JMB_SET_A;
    }
    return JAMBA_OK;
}

static jamba_result jmb_parse_program(jmb_metadata *m, jmb_heap *heap, const uint8_t *p, jamba_error *error)
{
    enum { USED = 4 * (sizeof(jmb_block) / 4) };
    uint32_t i, count = m->header.blocks;
    m->blocks = (jmb_block *)jmb_heap_take(heap, count, sizeof *m->blocks);
    if (!m->blocks) return jmb_no_memory(error);
    for (i = 0; i < count; i++) {
        uint64_t at = m->parts.program + (uint64_t)i * JMB_BLOCK_BYTES;
        jmb_read_block(&m->blocks[i], p + at);
        JMB_TRY(jmb_check_block(m->blocks, i, error));
        JMB_TRY(jmb_check_zero(p, at + USED, at + JMB_BLOCK_BYTES, error));
    }
    return jmb_check_streams(m, error);
}

typedef struct jmb_entry {
#define JMB_X(type, name, at) jmb_##type name;
    JMB_ENTRY_FIELDS(JMB_X)
#undef JMB_X
} jmb_entry;

static void jmb_read_entry(jmb_entry *e, const uint8_t *p)
{
#define JMB_X(type, name, at) e->name = JMB_READ_##type(p + (at));
    JMB_ENTRY_FIELDS(JMB_X)
#undef JMB_X
}

/* The directory entry at `at` against the tensor that the program asks for here; takes its type and hash. */
static jamba_result jmb_parse_entry(jmb_tensor *t, const jmb_entry *e, uint64_t at, jamba_error *error)
{
    char name[64];
    jmb_tensor_name(t, name);
    if (e->role != t->role || e->unit != t->unit || e->index != t->index)
        return jmb_fail(error, JAMBA_ERR_FORMAT, at, "tensor %s is missing or out of order", name);
    if (e->rows != t->rows || e->cols != t->cols)
        return jmb_fail(error, JAMBA_ERR_FORMAT, at + 8, "tensor %s is %u x %u and should be %u x %u", name, e->rows,
            e->cols, t->rows, t->cols);
    if (e->type >= JMB_TYPES || jmb_role_type(t->role, e->type) != e->type)
        return jmb_fail(error, JAMBA_ERR_FORMAT, at + 6, "tensor %s has type %u, which it cannot have", name, e->type);
    t->type = e->type;
    t->bytes = jmb_tensor_bytes(t);
    t->hash = e->hash;
    return JAMBA_OK;
}

/* The experts of a block are run together, so they have one type for each of their matrices. */
static bool jmb_same_type_as_first(const jmb_tensor *tensors, uint32_t i)
{
    bool expert = tensors[i].role == JMB_ROLE_GATE_UP || tensors[i].role == JMB_ROLE_DOWN;
    return !expert || tensors[i].index == 0 || tensors[i].type == tensors[i - 2].type;
}

static jamba_result jmb_parse_directory(jmb_metadata *m, jmb_heap *heap, const uint8_t *p, jamba_error *error)
{
    const jmb_header *h = &m->header;
    uint32_t i, count = jmb_list_tensors(h, m->blocks, JMB_F32, NULL);
    uint64_t at = m->parts.directory, end;
    jmb_entry e;
    if (count != h->tensors)
        return jmb_fail(
            error, JAMBA_ERR_FORMAT, 80, "the file has %u tensors, its program needs %u", h->tensors, count);
    m->tensors = (jmb_tensor *)jmb_heap_take(heap, count, sizeof *m->tensors);
    if (!m->tensors) return jmb_no_memory(error);
    jmb_list_tensors(h, m->blocks, JMB_F32, m->tensors);
    for (i = 0; i < count; i++, at += JMB_ENTRY_BYTES) {
        jmb_read_entry(&e, p + at);
        JMB_TRY(jmb_parse_entry(&m->tensors[i], &e, at, error));
        if (!jmb_same_type_as_first(m->tensors, i))
            return jmb_fail(error, JAMBA_ERR_FORMAT, at + 6, "experts of one block differ in type");
        JMB_TRY(jmb_check_zero(p, at + 40, at + JMB_ENTRY_BYTES, error));
    }
    end = jmb_place_tensors(m->tensors, count, h->data_offset);
    for (i = 0, at = m->parts.directory; i < count; i++, at += JMB_ENTRY_BYTES) {
        jmb_read_entry(&e, p + at);
        if (e.offset != m->tensors[i].offset || e.bytes != m->tensors[i].bytes)
            return jmb_fail(error, JAMBA_ERR_FORMAT, at + 16, "tensor %u is not where it should be", i);
    }
    if (end != h->file_size)
        return jmb_fail(error, JAMBA_ERR_FORMAT, 16, "the tensors end at %l, the file at %l", end, h->file_size);
    return JAMBA_OK;
}

/* Text that can be printed: no control characters but tab and newline. */
static bool jmb_is_printable(const uint8_t *p, size_t size)
{
    size_t i;
    for (i = 0; i < size; i++)
        if ((p[i] < 32 && p[i] != '\t' && p[i] != '\n') || p[i] == 127) return false;
    return true;
}

/* Size of the record (key length, value length, key, value) at p, 0 when it does not fit in `left`. */
static uint64_t jmb_string_record(const uint8_t *p, uint64_t left)
{
    uint64_t size;
    if (left < 8) return 0;
    size = jmb_add(8, jmb_add(jmb_load_u32(p), jmb_load_u32(p + 4)));
    return size > left || !jmb_is_printable(p + 8, (size_t)size - 8) ? 0 : size;
}

/* Appends one terminated copy to `text`. */
static const char *jmb_copy_string(char **text, const uint8_t *p, uint32_t size)
{
    char *copy = *text;
    memcpy(copy, p, size);
    *text += size + 1; /* the heap is zeroed */
    return copy;
}

static const char *jmb_find_string(const jmb_metadata *m, const char *key)
{
    uint32_t i;
    for (i = 0; i < m->string_count; i++)
        if (strcmp(m->strings[i].key, key) == 0) return m->strings[i].value;
    return NULL;
}

static jamba_result jmb_parse_strings(jmb_metadata *m, jmb_heap *heap, const uint8_t *p, jamba_error *error)
{
    uint64_t at, end = m->parts.strings + m->header.strings_size, size;
    uint32_t count = 0;
    char *text;
    for (at = m->parts.strings; at < end; at += size, count++) {
        size = jmb_string_record(p + at, end - at);
        if (size == 0 || count == JMB_MAX_STRINGS) return jmb_fail(error, JAMBA_ERR_FORMAT, at, "a string is damaged");
    }
    m->strings = (jmb_string *)jmb_heap_take(heap, count, sizeof *m->strings);
    text = (char *)jmb_heap_take(heap, m->header.strings_size, 1); /* 8 bytes of lengths leave room for two ends */
    if (!m->strings || !text) return jmb_no_memory(error);
    for (at = m->parts.strings; at < end; at += size) {
        uint32_t key_size = jmb_load_u32(p + at), value_size = jmb_load_u32(p + at + 4);
        const char *key = jmb_copy_string(&text, p + at + 8, key_size);
        if (jmb_find_string(m, key)) return jmb_fail(error, JAMBA_ERR_FORMAT, at, "string %s stands there twice", key);
        m->strings[m->string_count].key = key;
        m->strings[m->string_count++].value = jmb_copy_string(&text, p + at + 8 + key_size, value_size);
        size = 8 + (uint64_t)key_size + value_size;
    }
    return jmb_check_zero(p, end, m->parts.tokenizer, error);
}

/* Checks and copies everything before the data, from the first `have` bytes of a file of `size`; they
 * stay the caller's. */
static jamba_result jmb_parse_metadata(
    jmb_metadata *m, jmb_heap *heap, const uint8_t *p, uint64_t have, uint64_t size, jamba_error *error)
{
    JMB_TRY(jmb_parse_header(m, p, size, error));
    if (have < m->header.data_offset) return jmb_fail(error, JAMBA_ERR_FORMAT, 24, "the metadata is cut off");
    JMB_TRY_HASH(jmb_check_identity(m, p, error));
    JMB_TRY(jmb_parse_program(m, heap, p, error));
    JMB_TRY(jmb_parse_directory(m, heap, p, error));
    JMB_TRY(jmb_parse_strings(m, heap, p, error));
    return jmb_check_zero(p, m->parts.tokenizer + m->header.tokenizer_size, m->parts.data, error);
}


/* ===========================================================================================
 * >>tokenizer - text to tokens and back
 *
 * Byte-pair encoding as SentencePiece and GPT-2 models use it, with the exact results of the `tokenizers`
 * library: added tokens are cut out first, the rest is normalised, cut into words, and each word starts
 * as characters (or their bytes <0x00> to <0xFF>, or unk) and is merged pair by pair in order of rank. In
 * a byte-level tokenizer words start as bytes, and the text of a token is the bytes that it stands for.
 *
 * Letters, numbers, white space and NFC are those of Unicode 16.0. The library's NFC is of Unicode 9.0: it
 * differs at 21 characters that compose and 120 that combine, which are younger (make_unicode.py --library).
 *
 * THE SECTION (numbers little-endian; every part a multiple of 4 bytes but the last; nothing after it)
 *     header     32 bytes, JMB_TOKENIZER_FIELDS; flags are JMB_TEXT_FLAGS
 *     rules      of each: u32 kind (jmb_rule_kind), u32 size of from, u32 size of to, from, to, zeros up to
 *                a multiple of 4. Normaliser rules in the order they run; SPACE; DECODE
 *     offsets    u32 [tokens + 1]: where each token's text begins in `text`; the last one is its size
 *     flags      u8 [tokens], JMB_TOKEN_..., zeros up to a multiple of 4. A token without text has none
 *     bytes      u32 [256], with JMB_TEXT_BYTES only: the token of each byte, or JMB_NO_TOKEN
 *     merges     u32 [merges][3]: left, right and result token, best first; JMB_MERGE_TIE in the result: as
 *                good as the one before, so that the leftmost of both comes first
 *     text       UTF-8, not terminated; with JMB_TEXT_RAW any bytes
 * Token ids are indices; ids from `tokens` to the model's vocabulary are padding without text. Hashes
 * and tries are built at load and never stored. Another `kind` may lay out everything after it anew.
 * =========================================================================================== */

#define JMB_TOKENIZER_FIELDS(X)                                     \
    X(u32, kind, 0) /* 1, this one */                               \
    X(u32, flags, 4)                                                \
    X(u32, tokens, 8) X(u32, text_size, 12) X(u32, merges, 16)      \
    X(u32, rules, 20)                                               \
    X(u32, unk, 24)   /* of characters without token; or JMB_NO_TOKEN, then they vanish */ \
    X(u32, strip, 28) /* spaces taken off the front of decoded text */

enum { JMB_TOKENIZER_KIND = 1, JMB_TOKENIZER_BYTES = 32 };

enum { /* flags of the section, JMB_TEXT_FLAGS */
    JMB_TEXT_FUSE_UNK = 1,      /* neighbouring unknown characters become one unk */
    JMB_TEXT_BYTES = 2,         /* unknown characters become byte tokens where all of them exist */
    JMB_TEXT_SPLIT = 4,         /* SPACE: a word begins at each replacement */
    JMB_TEXT_PREFIX_FIRST = 8,  /* SPACE: the text's start gets a replacement if it has none */
    JMB_TEXT_PREFIX_ALWAYS = 16, /* SPACE: so does text after an added token */
    JMB_TEXT_DECODE_BYTES = 32, /* tokens <0x00> to <0xFF> decode to that byte */
    JMB_TEXT_DROP_FIRST = 64,   /* DECODE deletes in the first token instead */
    JMB_TEXT_GPT2 = 128,        /* words are those of GPT-2 */
    JMB_TEXT_RAW = 256,         /* byte-level: words start as bytes, decoding joins bytes */
    JMB_TEXT_AS_WRITTEN = 512,  /* JMB_TOKEN_NORMALISED tokens are not normalised themselves */
    JMB_TEXT_FLAGS = 1023,
    JMB_TEXT_CHARS = JMB_TEXT_BYTES | JMB_TEXT_DECODE_BYTES | JMB_TEXT_DROP_FIRST /* not with JMB_TEXT_RAW */
};

enum { /* flags of a token */
    JMB_TOKEN_MODEL = 1,      /* merging may yield it */
    JMB_TOKEN_ADDED = 2,      /* matches as a whole, before merging; the flags below are of added tokens */
    JMB_TOKEN_SPECIAL = 4,    /* only where special tokens may match; not written out by default */
    JMB_TOKEN_LSTRIP = 8,     /* takes the white space to its left along */
    JMB_TOKEN_RSTRIP = 16,
    JMB_TOKEN_WORD = 32,      /* not inside a word */
    JMB_TOKEN_NORMALISED = 64, /* its normalised text matches in normalised text */
    JMB_TOKEN_FLAGS = 127,
    JMB_TOKEN_KINDS = JMB_TOKEN_MODEL | JMB_TOKEN_ADDED /* one of them for each text, at least */
};

typedef enum jmb_rule_kind {
    JMB_RULE_PREPEND = 1, /* normaliser: `to` in front of every stretch between added tokens */
    JMB_RULE_REPLACE,     /* normaliser: each `from` becomes `to` */
    JMB_RULE_SPACE,       /* words: each " " becomes `to`, one character */
    JMB_RULE_DECODE,      /* decoding: in each token, `from` becomes `to` */
    JMB_RULE_NFC          /* normaliser: canonical composition; no text */
} jmb_rule_kind;

enum {
    JMB_MAX_TOKEN = 1024,      /* bytes of text, normalised too */
    JMB_MAX_TOKEN_TEXT = 1 << 26, /* bytes of all */
    JMB_MAX_ADDED_TEXT = 1 << 22, /* bytes of all added ones */
    JMB_MAX_MERGES = 1 << 20,
    JMB_MAX_RULES = 8,
    JMB_MAX_RULE_TEXT = 64,
    JMB_MAX_GROWTH = 16, /* of text, by all rules together */
    JMB_MAX_STRIP = 64,
    JMB_MAX_PROBES = 512, /* of a hash; an honest vocabulary needs some dozens */
    JMB_MAX_TEXT = 1 << 30
};

typedef struct jmb_rule {
    uint32_t kind; /* 0: none */
    uint32_t from_size, to_size;
    uint8_t from[JMB_MAX_RULE_TEXT], to[JMB_MAX_RULE_TEXT];
} jmb_rule;

#define JMB_MERGE_TIE 0x80000000u

typedef struct jmb_merge {
    uint32_t left, right, result;
    uint32_t rank; /* number of the first merge that is as good */
} jmb_merge;

/* Open addressing over item numbers; empty slots are JMB_NO_TOKEN. */
typedef struct jmb_hash_table {
    uint32_t *slots;
    uint32_t mask;
} jmb_hash_table;

typedef struct jmb_trie_node {
    uint32_t child, sibling; /* 0: none */
    uint32_t token;          /* that ends here, or JMB_NO_TOKEN */
    uint8_t byte;
} jmb_trie_node;

/* Added tokens by their bytes. Node 0 is the root, whose children are found through `first`. */
typedef struct jmb_trie {
    jmb_trie_node *nodes; /* NULL: no tokens */
    uint32_t count;
    uint32_t first[256];
} jmb_trie;

/* What an added token looks like in normalised text. */
typedef struct jmb_pattern {
    uint32_t token, offset, size;
} jmb_pattern;

/* All zero: no tokenizer. */
typedef struct jmb_tokenizer {
    uint32_t vocab;
    uint32_t kind, flags, tokens, text_size, merges, rules, unk, strip;
    jmb_rule normaliser[JMB_MAX_RULES], space, decode;
    uint32_t normaliser_count;
    const uint32_t *offsets;
    const uint8_t *token_flags, *text;
    uint32_t bytes[256];
    const jmb_merge *merge;
    jmb_hash_table by_text, by_pair;
    jmb_trie raw, normalised;
    jmb_pattern *patterns; /* of JMB_TOKEN_NORMALISED tokens, ascending */
    uint32_t pattern_count;
    const uint8_t *pattern_text;
} jmb_tokenizer;

/* ---- UTF-8 and characters ------------------------------------------------------------------ */

/* Size of the character at p; 0 when the n bytes are only its beginning, -1 when they begin none. No
 * overlong forms, no surrogates, nothing above U+10FFFF. */
static int jmb_utf8(const uint8_t *p, size_t n)
{
    uint8_t lead = p[0], low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    size_t i, size = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    if (lead < 0x80) return 1;
    if (lead < 0xc2 || lead > 0xf4) return -1;
    if (n > 1 && (p[1] < low || p[1] > high)) return -1;
    for (i = 2; i < size && i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return -1;
    return n < size ? 0 : (int)size;
}

/* Bytes up to the first that is not valid UTF-8; n when all are. */
static size_t jmb_utf8_prefix(const uint8_t *p, size_t n)
{
    size_t at = 0;
    while (at < n) {
        int size = jmb_utf8(p + at, n - at);
        if (size <= 0) break;
        at += (size_t)size;
    }
    return at;
}

/* Text is worked on in units: a byte, and whether special tokens may match there. */
typedef uint16_t jmb_unit;
enum { JMB_UNIT_SPECIAL = 0x100 };

static bool jmb_unit_continues(jmb_unit unit)
{
    return (unit & 0xc0) == 0x80;
}

static size_t jmb_char_size(jmb_unit lead)
{
    uint32_t byte = lead & 0xffu;
    return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

static uint32_t jmb_char_at(const jmb_unit *p)
{
    size_t i, size = jmb_char_size(*p);
    uint32_t c = size == 1 ? *p & 0x7fu : *p & (0x7fu >> size);
    for (i = 1; i < size; i++) c = c << 6 | (p[i] & 0x3fu);
    return c;
}

/* Start of the character that ends at `end` > 0. */
static size_t jmb_char_before(const jmb_unit *text, size_t end)
{
    while (jmb_unit_continues(text[--end])) {}
    return end;
}

/* ---- Unicode 16.0 -------------------------------------------------------------------------- */

typedef enum jmb_char_class {
    JMB_CHAR_OTHER,
    JMB_CHAR_MARK, /* what belongs to words but is neither letter nor number */
    JMB_CHAR_LETTER,
    JMB_CHAR_NUMBER, /* outside words */
    JMB_CHAR_DIGIT,
    JMB_CHAR_SPACE
} jmb_char_class;

enum { JMB_CLASS_STEP = 32, JMB_FIRST_MARK = 0x300, JMB_NFC_PARTS = 4 };

/* The tables are what tests/make_unicode.py prints.
 *     class_runs         length * 8 + class of runs of characters, from U+0000
 *     class_starts       the first character of every JMB_CLASS_STEP-th of them
 *     combining_runs     first character << 8 | combining class
 *     decomposed_runs    first character of a run of those that decompose, its entry in decomposed
 *     decomposed         one step: a character, or two; else 0
 *     composed           entries of decomposed that compose, by what they consist of */

static const uint16_t jmb_class_runs[] = {
    72, 45, 144, 13, 120, 84, 56, 210, 32, 9, 8, 210, 80, 13, 208, 13, 72, 10, 56, 19, 8, 10, 24, 11, 10, 8, 27, 8, 186,
    8, 250, 8, 3666, 32, 98, 112, 42, 56, 10, 8, 10, 136, 897, 42, 8, 18, 16, 34, 8, 10, 48, 10, 8, 26, 8, 10, 8, 162,
    8, 666, 8, 1114, 8, 57, 1330, 8, 306, 16, 10, 48, 330, 64, 361, 8, 9, 8, 17, 8, 17, 8, 9, 64, 218, 32, 34, 232, 89,
    40, 346, 169, 84, 32, 18, 9, 794, 8, 10, 57, 16, 49, 18, 17, 8, 33, 18, 84, 26, 16, 10, 128, 10, 9, 242, 217, 16,
    714, 89, 10, 112, 84, 266, 73, 18, 32, 10, 16, 9, 16, 178, 33, 10, 73, 10, 25, 10, 41, 144, 202, 25, 32, 90, 40,
    194, 8, 50, 64, 73, 338, 193, 8, 265, 434, 25, 10, 145, 10, 57, 82, 17, 16, 84, 8, 130, 25, 8, 66, 16, 18, 16, 178,
    8, 58, 8, 10, 24, 34, 16, 9, 10, 57, 16, 17, 16, 25, 10, 64, 9, 32, 18, 8, 26, 17, 16, 84, 18, 16, 51, 16, 10, 8, 9,
    16, 25, 8, 50, 32, 18, 16, 178, 8, 58, 8, 18, 8, 18, 8, 18, 16, 9, 8, 41, 32, 17, 16, 25, 24, 9, 56, 34, 8, 10, 56,
    84, 17, 26, 9, 88, 25, 8, 74, 8, 26, 8, 178, 8, 58, 8, 18, 8, 42, 16, 9, 10, 65, 8, 25, 8, 25, 16, 10, 120, 18, 17,
    16, 84, 72, 10, 49, 8, 25, 8, 66, 16, 18, 16, 178, 8, 58, 8, 18, 8, 42, 16, 9, 10, 57, 16, 17, 16, 25, 56, 25, 32,
    18, 8, 26, 17, 16, 84, 8, 10, 51, 80, 9, 10, 8, 50, 24, 26, 8, 34, 24, 18, 8, 10, 8, 18, 24, 18, 24, 26, 24, 98, 32,
    41, 24, 25, 8, 33, 16, 10, 48, 9, 112, 84, 27, 104, 41, 66, 8, 26, 8, 186, 8, 130, 16, 9, 10, 57, 8, 25, 8, 33, 56,
    17, 8, 26, 16, 10, 16, 18, 17, 16, 84, 64, 59, 8, 10, 25, 8, 66, 8, 26, 8, 186, 8, 82, 8, 42, 16, 9, 10, 57, 8, 25,
    8, 33, 56, 17, 48, 18, 8, 18, 17, 16, 84, 8, 18, 9, 96, 33, 74, 8, 26, 8, 330, 17, 10, 57, 8, 25, 8, 33, 10, 40, 26,
    9, 59, 26, 17, 16, 84, 75, 8, 50, 8, 25, 8, 146, 24, 194, 8, 74, 8, 10, 16, 58, 24, 9, 32, 49, 8, 9, 8, 65, 48, 84,
    16, 17, 104, 386, 9, 18, 57, 40, 58, 65, 8, 84, 312, 18, 8, 10, 8, 42, 8, 194, 8, 10, 8, 82, 9, 18, 73, 10, 16, 42,
    8, 10, 8, 57, 8, 84, 16, 34, 256, 10, 184, 17, 48, 84, 83, 8, 9, 8, 9, 8, 9, 32, 17, 66, 8, 290, 32, 161, 8, 17, 42,
    89, 8, 289, 72, 9, 456, 346, 161, 10, 84, 48, 50, 33, 34, 25, 10, 25, 18, 57, 26, 33, 106, 97, 10, 9, 84, 33, 16,
    306, 8, 10, 40, 10, 16, 346, 8, 2666, 8, 34, 16, 58, 8, 10, 8, 34, 16, 330, 8, 34, 16, 266, 8, 34, 16, 58, 8, 10, 8,
    34, 16, 122, 8, 458, 8, 34, 16, 538, 16, 25, 72, 163, 24, 130, 128, 690, 16, 50, 24, 4962, 16, 138, 13, 210, 40,
    602, 24, 28, 66, 56, 146, 33, 72, 154, 25, 88, 146, 17, 96, 106, 8, 26, 8, 17, 96, 418, 257, 24, 10, 32, 10, 9, 16,
    84, 48, 83, 136, 25, 8, 9, 84, 48, 714, 56, 42, 17, 274, 9, 10, 40, 562, 80, 250, 8, 97, 32, 97, 80, 84, 242, 16,
    42, 88, 354, 32, 210, 48, 84, 11, 296, 186, 41, 32, 426, 81, 8, 233, 16, 9, 84, 48, 84, 104, 10, 64, 249, 392, 41,
    378, 137, 66, 24, 84, 136, 73, 96, 25, 242, 105, 18, 84, 354, 113, 96, 290, 161, 64, 84, 24, 26, 84, 290, 16, 90,
    40, 346, 16, 26, 128, 25, 8, 169, 34, 9, 50, 9, 18, 25, 10, 40, 1538, 513, 2226, 16, 50, 16, 306, 16, 50, 16, 66, 8,
    10, 8, 10, 8, 10, 8, 250, 16, 426, 8, 58, 8, 10, 24, 26, 8, 58, 24, 34, 16, 50, 32, 106, 40, 26, 8, 58, 24, 93, 8,
    17, 208, 21, 40, 13, 120, 17, 152, 9, 80, 13, 128, 11, 10, 16, 51, 40, 10, 83, 48, 106, 408, 265, 136, 10, 32, 10,
    16, 82, 8, 10, 24, 42, 48, 10, 8, 10, 8, 10, 8, 34, 8, 90, 16, 34, 40, 42, 32, 10, 8, 131, 284, 18, 36, 11, 5808,
    483, 208, 417, 179, 5040, 243, 9056, 1834, 48, 34, 25, 18, 72, 11, 16, 306, 8, 10, 40, 10, 16, 450, 56, 10, 120, 9,
    186, 72, 58, 8, 58, 8, 58, 8, 58, 8, 58, 8, 58, 8, 58, 8, 58, 8, 257, 376, 10, 3712, 13, 32, 18, 12, 200, 76, 49, 8,
    42, 16, 28, 18, 32, 690, 16, 17, 16, 26, 8, 722, 8, 34, 40, 346, 8, 754, 24, 35, 80, 258, 384, 130, 256, 83, 240,
    67, 8, 123, 256, 83, 312, 123, 2560, 52738, 512, 65530, 65530, 46202, 536, 370, 16, 2154, 24, 130, 84, 18, 160, 378,
    33, 8, 81, 8, 250, 17, 562, 84, 17, 296, 74, 16, 826, 16, 538, 16, 18, 8, 10, 8, 66, 168, 130, 9, 26, 9, 34, 9, 186,
    41, 32, 9, 24, 51, 80, 418, 96, 17, 402, 145, 80, 84, 48, 145, 50, 24, 10, 8, 18, 9, 84, 226, 65, 16, 186, 105, 96,
    234, 24, 33, 378, 113, 112, 10, 84, 48, 42, 9, 82, 84, 42, 8, 330, 113, 72, 26, 9, 66, 17, 16, 84, 48, 186, 24, 10,
    25, 402, 9, 10, 25, 18, 17, 42, 17, 10, 9, 10, 192, 26, 16, 90, 41, 16, 26, 17, 80, 50, 16, 50, 16, 50, 72, 58, 8,
    58, 8, 346, 8, 114, 48, 922, 65, 8, 17, 16, 84, 48, 65530, 23850, 96, 186, 32, 394, 65528, 2088, 2930, 16, 850, 304,
    58, 96, 42, 40, 10, 9, 82, 8, 106, 8, 42, 8, 10, 8, 18, 8, 18, 8, 866, 264, 2906, 144, 514, 16, 434, 320, 98, 32,
    129, 128, 129, 24, 17, 192, 25, 256, 42, 8, 1082, 152, 84, 56, 210, 32, 9, 8, 210, 88, 714, 24, 50, 16, 50, 16, 50,
    16, 26, 280, 98, 8, 210, 8, 154, 8, 18, 8, 122, 16, 114, 272, 986, 96, 363, 96, 428, 35, 136, 19, 904, 9, 1040, 234,
    24, 394, 120, 9, 219, 32, 258, 35, 72, 162, 12, 66, 12, 40, 306, 41, 40, 242, 16, 290, 32, 66, 8, 44, 336, 1266, 16,
    84, 48, 290, 32, 290, 32, 322, 64, 418, 96, 90, 8, 122, 8, 58, 8, 18, 8, 90, 8, 122, 8, 58, 8, 18, 24, 418, 96,
    2490, 72, 178, 80, 66, 192, 50, 8, 338, 8, 74, 552, 50, 16, 10, 8, 354, 8, 18, 24, 10, 16, 186, 16, 67, 186, 16, 59,
    250, 64, 75, 384, 154, 8, 18, 40, 43, 178, 51, 32, 210, 560, 450, 32, 19, 18, 131, 16, 371, 10, 25, 8, 17, 40, 33,
    34, 8, 26, 8, 234, 16, 25, 32, 9, 75, 184, 234, 19, 8, 234, 27, 256, 66, 8, 226, 17, 32, 43, 128, 434, 80, 178, 16,
    67, 154, 40, 67, 146, 184, 59, 640, 586, 440, 410, 104, 410, 56, 51, 290, 33, 64, 84, 48, 84, 226, 24, 41, 8, 186,
    1744, 251, 8, 338, 8, 17, 24, 18, 128, 26, 440, 33, 234, 83, 10, 64, 178, 89, 35, 216, 146, 33, 336, 170, 59, 160,
    186, 72, 25, 426, 121, 88, 163, 84, 9, 18, 17, 10, 72, 33, 362, 89, 56, 9, 104, 202, 56, 84, 48, 25, 290, 113, 8,
    84, 32, 10, 17, 10, 64, 282, 9, 16, 10, 72, 25, 386, 113, 34, 32, 33, 8, 17, 84, 10, 8, 10, 32, 163, 88, 146, 8,
    202, 97, 48, 9, 18, 9, 496, 58, 8, 10, 8, 34, 8, 122, 8, 82, 56, 378, 97, 40, 84, 48, 33, 8, 66, 16, 18, 16, 178, 8,
    58, 8, 18, 8, 42, 8, 17, 10, 57, 16, 17, 16, 25, 16, 10, 48, 9, 40, 42, 17, 16, 57, 24, 41, 88, 82, 8, 10, 16, 10,
    8, 306, 8, 10, 73, 8, 9, 16, 9, 8, 33, 8, 41, 10, 9, 10, 104, 17, 232, 426, 145, 34, 40, 84, 32, 9, 26, 240, 386,
    161, 18, 8, 10, 64, 84, 1328, 378, 57, 16, 73, 184, 34, 17, 272, 386, 137, 24, 10, 88, 84, 304, 346, 105, 10, 56,
    84, 48, 164, 224, 218, 16, 121, 32, 84, 19, 32, 58, 1480, 354, 121, 808, 514, 84, 75, 96, 66, 16, 10, 16, 66, 8, 18,
    8, 194, 49, 8, 17, 16, 33, 10, 9, 10, 17, 96, 84, 560, 66, 16, 314, 57, 16, 57, 10, 8, 10, 9, 216, 10, 81, 322, 57,
    10, 33, 64, 9, 64, 10, 89, 370, 129, 24, 10, 144, 586, 1592, 266, 120, 84, 48, 74, 8, 298, 65, 8, 65, 10, 120, 84,
    155, 40, 242, 16, 177, 8, 113, 584, 58, 8, 18, 8, 306, 49, 24, 9, 8, 17, 8, 57, 10, 9, 64, 84, 48, 50, 8, 18, 8,
    258, 41, 8, 17, 8, 41, 10, 56, 84, 2480, 154, 33, 72, 17, 10, 9, 106, 8, 274, 57, 24, 41, 104, 84, 9, 680, 10, 120,
    171, 344, 7378, 816, 892, 136, 1570, 21088, 778, 120, 8578, 128, 9, 50, 121, 80, 31962, 40, 4666, 54728, 242, 145,
    84, 13872, 4554, 56, 250, 8, 84, 48, 634, 8, 84, 48, 242, 16, 41, 88, 386, 57, 72, 34, 96, 84, 8, 59, 8, 170, 40,
    154, 3456, 362, 24, 84, 1584, 514, 187, 840, 602, 32, 9, 10, 441, 56, 33, 106, 512, 18, 8, 10, 9, 88, 17, 112,
    49090, 64, 9906, 328, 82, 65528, 5952, 34, 8, 58, 8, 18, 8, 2330, 120, 10, 232, 26, 16, 10, 112, 34, 64, 3170,
    18464, 858, 40, 106, 24, 74, 56, 82, 24, 17, 33416, 84, 4144, 369, 16, 185, 4336, 41, 24, 49, 64, 65, 16, 57, 240,
    33, 1184, 25, 984, 163, 96, 163, 864, 203, 1080, 682, 8, 570, 8, 18, 16, 10, 16, 18, 16, 34, 8, 98, 8, 10, 8, 58, 8,
    522, 8, 34, 16, 66, 8, 58, 8, 226, 8, 34, 8, 42, 8, 10, 24, 58, 8, 2722, 16, 202, 8, 202, 8, 250, 8, 202, 8, 250, 8,
    202, 8, 250, 8, 202, 8, 250, 8, 202, 8, 66, 16, 404, 4096, 441, 32, 401, 64, 9, 112, 9, 176, 41, 8, 121, 8832, 250,
    48, 50, 1704, 57, 8, 137, 16, 57, 8, 17, 8, 41, 40, 498, 264, 9, 896, 362, 24, 57, 58, 16, 84, 32, 10, 2568, 242, 9,
    136, 354, 33, 84, 3760, 226, 33, 84, 1712, 242, 17, 10, 84, 3880, 58, 8, 34, 8, 18, 8, 122, 8, 1578, 16, 75, 57,
    328, 546, 57, 10, 32, 84, 6328, 475, 8, 27, 8, 35, 608, 363, 8, 123, 1552, 34, 8, 218, 8, 18, 8, 10, 16, 10, 8, 82,
    8, 34, 8, 10, 8, 10, 48, 10, 32, 10, 8, 10, 8, 10, 8, 26, 8, 18, 8, 10, 16, 10, 8, 10, 8, 10, 8, 10, 8, 10, 8, 18,
    8, 10, 16, 34, 8, 58, 8, 34, 8, 34, 8, 10, 8, 82, 8, 138, 40, 26, 8, 42, 8, 138, 4640, 107, 280, 209, 48, 209, 48,
    209, 21296, 84, 8240, 65530, 65530, 65530, 65530, 65530, 14122, 256, 33234, 48, 1778, 16, 46098, 112, 59786, 120,
    4978, 19728, 4338, 12048, 39514, 40, 33538, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528,
    65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528,
    65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528,
    65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528,
    65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528,
    65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 60720, 1921, 65528, 65528,
    65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528, 65528,
    65528, 65528, 65528, 65528, 65528, 61752
};

static const uint32_t jmb_class_starts[] = {
    0, 248, 1162, 1749, 2048, 2406, 2532, 2635, 2762, 2889, 2984, 3146, 3270, 3415, 3570, 3784, 4038, 4348, 4957, 5998,
    6431, 6832, 7357, 8062, 8277, 8494, 11559, 12289, 12832, 42726, 43188, 43519, 43762, 63744, 65024, 65549, 66369,
    66963, 67641, 68100, 68440, 69293, 69750, 70093, 70394, 70512, 70750, 71376, 71999, 72349, 73018, 73490, 90416,
    93562, 110591, 119155, 120004, 120655, 122905, 124398, 126270, 126549, 126634, 196608, 443283, 705395, 958955
};

static const uint32_t jmb_combining_runs[] = {
    0x0, 0x300e6, 0x315e8, 0x316dc, 0x31ae8, 0x31bd8, 0x31cdc, 0x321ca, 0x323dc, 0x327ca, 0x329dc, 0x33401, 0x339dc,
    0x33de6, 0x345f0, 0x346e6, 0x347dc, 0x34ae6, 0x34ddc, 0x34f00, 0x350e6, 0x353dc, 0x357e6, 0x358e8, 0x359dc, 0x35be6,
    0x35ce9, 0x35dea, 0x35fe9, 0x360ea, 0x362e9, 0x363e6, 0x37000, 0x483e6, 0x48800, 0x591dc, 0x592e6, 0x596dc, 0x597e6,
    0x59ade, 0x59bdc, 0x59ce6, 0x5a2dc, 0x5a8e6, 0x5aadc, 0x5abe6, 0x5adde, 0x5aee4, 0x5afe6, 0x5b00a, 0x5b10b, 0x5b20c,
    0x5b30d, 0x5b40e, 0x5b50f, 0x5b610, 0x5b711, 0x5b812, 0x5b913, 0x5bb14, 0x5bc15, 0x5bd16, 0x5be00, 0x5bf17, 0x5c000,
    0x5c118, 0x5c219, 0x5c300, 0x5c4e6, 0x5c5dc, 0x5c600, 0x5c712, 0x5c800, 0x610e6, 0x6181e, 0x6191f, 0x61a20, 0x61b00,
    0x64b1b, 0x64c1c, 0x64d1d, 0x64e1e, 0x64f1f, 0x65020, 0x65121, 0x65222, 0x653e6, 0x655dc, 0x657e6, 0x65cdc, 0x65de6,
    0x65fdc, 0x66000, 0x67023, 0x67100, 0x6d6e6, 0x6dd00, 0x6dfe6, 0x6e3dc, 0x6e4e6, 0x6e500, 0x6e7e6, 0x6e900, 0x6eadc,
    0x6ebe6, 0x6eddc, 0x6ee00, 0x71124, 0x71200, 0x730e6, 0x731dc, 0x732e6, 0x734dc, 0x735e6, 0x737dc, 0x73ae6, 0x73bdc,
    0x73de6, 0x73edc, 0x73fe6, 0x742dc, 0x743e6, 0x744dc, 0x745e6, 0x746dc, 0x747e6, 0x748dc, 0x749e6, 0x74b00, 0x7ebe6,
    0x7f2dc, 0x7f3e6, 0x7f400, 0x7fddc, 0x7fe00, 0x816e6, 0x81a00, 0x81be6, 0x82400, 0x825e6, 0x82800, 0x829e6, 0x82e00,
    0x859dc, 0x85c00, 0x897e6, 0x899dc, 0x89ce6, 0x8a000, 0x8cae6, 0x8cfdc, 0x8d4e6, 0x8e200, 0x8e3dc, 0x8e4e6, 0x8e6dc,
    0x8e7e6, 0x8e9dc, 0x8eae6, 0x8eddc, 0x8f01b, 0x8f11c, 0x8f21d, 0x8f3e6, 0x8f6dc, 0x8f7e6, 0x8f9dc, 0x8fbe6, 0x90000,
    0x93c07, 0x93d00, 0x94d09, 0x94e00, 0x951e6, 0x952dc, 0x953e6, 0x95500, 0x9bc07, 0x9bd00, 0x9cd09, 0x9ce00, 0x9fee6,
    0x9ff00, 0xa3c07, 0xa3d00, 0xa4d09, 0xa4e00, 0xabc07, 0xabd00, 0xacd09, 0xace00, 0xb3c07, 0xb3d00, 0xb4d09, 0xb4e00,
    0xbcd09, 0xbce00, 0xc3c07, 0xc3d00, 0xc4d09, 0xc4e00, 0xc5554, 0xc565b, 0xc5700, 0xcbc07, 0xcbd00, 0xccd09, 0xcce00,
    0xd3b09, 0xd3d00, 0xd4d09, 0xd4e00, 0xdca09, 0xdcb00, 0xe3867, 0xe3a09, 0xe3b00, 0xe486b, 0xe4c00, 0xeb876, 0xeba09,
    0xebb00, 0xec87a, 0xecc00, 0xf18dc, 0xf1a00, 0xf35dc, 0xf3600, 0xf37dc, 0xf3800, 0xf39d8, 0xf3a00, 0xf7181, 0xf7282,
    0xf7300, 0xf7484, 0xf7500, 0xf7a82, 0xf7e00, 0xf8082, 0xf8100, 0xf82e6, 0xf8409, 0xf8500, 0xf86e6, 0xf8800, 0xfc6dc,
    0xfc700, 0x103707, 0x103800, 0x103909, 0x103b00, 0x108ddc, 0x108e00, 0x135de6, 0x136000, 0x171409, 0x171600,
    0x173409, 0x173500, 0x17d209, 0x17d300, 0x17dde6, 0x17de00, 0x18a9e4, 0x18aa00, 0x1939de, 0x193ae6, 0x193bdc,
    0x193c00, 0x1a17e6, 0x1a18dc, 0x1a1900, 0x1a6009, 0x1a6100, 0x1a75e6, 0x1a7d00, 0x1a7fdc, 0x1a8000, 0x1ab0e6,
    0x1ab5dc, 0x1abbe6, 0x1abddc, 0x1abe00, 0x1abfdc, 0x1ac1e6, 0x1ac3dc, 0x1ac5e6, 0x1acadc, 0x1acbe6, 0x1acf00,
    0x1b3407, 0x1b3500, 0x1b4409, 0x1b4500, 0x1b6be6, 0x1b6cdc, 0x1b6de6, 0x1b7400, 0x1baa09, 0x1bac00, 0x1be607,
    0x1be700, 0x1bf209, 0x1bf400, 0x1c3707, 0x1c3800, 0x1cd0e6, 0x1cd300, 0x1cd401, 0x1cd5dc, 0x1cdae6, 0x1cdcdc,
    0x1ce0e6, 0x1ce100, 0x1ce201, 0x1ce900, 0x1ceddc, 0x1cee00, 0x1cf4e6, 0x1cf500, 0x1cf8e6, 0x1cfa00, 0x1dc0e6,
    0x1dc2dc, 0x1dc3e6, 0x1dcadc, 0x1dcbe6, 0x1dcdea, 0x1dced6, 0x1dcfdc, 0x1dd0ca, 0x1dd1e6, 0x1df6e8, 0x1df7e4,
    0x1df9dc, 0x1dfada, 0x1dfbe6, 0x1dfce9, 0x1dfddc, 0x1dfee6, 0x1dffdc, 0x1e0000, 0x20d0e6, 0x20d201, 0x20d4e6,
    0x20d801, 0x20dbe6, 0x20dd00, 0x20e1e6, 0x20e200, 0x20e501, 0x20e7e6, 0x20e8dc, 0x20e9e6, 0x20ea01, 0x20ecdc,
    0x20f0e6, 0x20f100, 0x2cefe6, 0x2cf200, 0x2d7f09, 0x2d8000, 0x2de0e6, 0x2e0000, 0x302ada, 0x302be4, 0x302ce8,
    0x302dde, 0x302ee0, 0x303000, 0x309908, 0x309b00, 0xa66fe6, 0xa67000, 0xa674e6, 0xa67e00, 0xa69ee6, 0xa6a000,
    0xa6f0e6, 0xa6f200, 0xa80609, 0xa80700, 0xa82c09, 0xa82d00, 0xa8c409, 0xa8c500, 0xa8e0e6, 0xa8f200, 0xa92bdc,
    0xa92e00, 0xa95309, 0xa95400, 0xa9b307, 0xa9b400, 0xa9c009, 0xa9c100, 0xaab0e6, 0xaab100, 0xaab2e6, 0xaab4dc,
    0xaab500, 0xaab7e6, 0xaab900, 0xaabee6, 0xaac000, 0xaac1e6, 0xaac200, 0xaaf609, 0xaaf700, 0xabed09, 0xabee00,
    0xfb1e1a, 0xfb1f00, 0xfe20e6, 0xfe27dc, 0xfe2ee6, 0xfe3000, 0x101fddc, 0x101fe00, 0x102e0dc, 0x102e100, 0x10376e6,
    0x1037b00, 0x10a0ddc, 0x10a0e00, 0x10a0fe6, 0x10a1000, 0x10a38e6, 0x10a3901, 0x10a3adc, 0x10a3b00, 0x10a3f09,
    0x10a4000, 0x10ae5e6, 0x10ae6dc, 0x10ae700, 0x10d24e6, 0x10d2800, 0x10d69e6, 0x10d6e00, 0x10eabe6, 0x10ead00,
    0x10efddc, 0x10f0000, 0x10f46dc, 0x10f48e6, 0x10f4bdc, 0x10f4ce6, 0x10f4ddc, 0x10f5100, 0x10f82e6, 0x10f83dc,
    0x10f84e6, 0x10f85dc, 0x10f8600, 0x1104609, 0x1104700, 0x1107009, 0x1107100, 0x1107f09, 0x1108000, 0x110b909,
    0x110ba07, 0x110bb00, 0x11100e6, 0x1110300, 0x1113309, 0x1113500, 0x1117307, 0x1117400, 0x111c009, 0x111c100,
    0x111ca07, 0x111cb00, 0x1123509, 0x1123607, 0x1123700, 0x112e907, 0x112ea09, 0x112eb00, 0x1133b07, 0x1133d00,
    0x1134d09, 0x1134e00, 0x11366e6, 0x1136d00, 0x11370e6, 0x1137500, 0x113ce09, 0x113d100, 0x1144209, 0x1144300,
    0x1144607, 0x1144700, 0x1145ee6, 0x1145f00, 0x114c209, 0x114c307, 0x114c400, 0x115bf09, 0x115c007, 0x115c100,
    0x1163f09, 0x1164000, 0x116b609, 0x116b707, 0x116b800, 0x1172b09, 0x1172c00, 0x1183909, 0x1183a07, 0x1183b00,
    0x1193d09, 0x1193f00, 0x1194307, 0x1194400, 0x119e009, 0x119e100, 0x11a3409, 0x11a3500, 0x11a4709, 0x11a4800,
    0x11a9909, 0x11a9a00, 0x11c3f09, 0x11c4000, 0x11d4207, 0x11d4300, 0x11d4409, 0x11d4600, 0x11d9709, 0x11d9800,
    0x11f4109, 0x11f4300, 0x1612f09, 0x1613000, 0x16af001, 0x16af500, 0x16b30e6, 0x16b3700, 0x16ff006, 0x16ff200,
    0x1bc9e01, 0x1bc9f00, 0x1d165d8, 0x1d16701, 0x1d16a00, 0x1d16de2, 0x1d16ed8, 0x1d17300, 0x1d17bdc, 0x1d18300,
    0x1d185e6, 0x1d18adc, 0x1d18c00, 0x1d1aae6, 0x1d1ae00, 0x1d242e6, 0x1d24500, 0x1e000e6, 0x1e00700, 0x1e008e6,
    0x1e01900, 0x1e01be6, 0x1e02200, 0x1e023e6, 0x1e02500, 0x1e026e6, 0x1e02b00, 0x1e08fe6, 0x1e09000, 0x1e130e6,
    0x1e13700, 0x1e2aee6, 0x1e2af00, 0x1e2ece6, 0x1e2f000, 0x1e4ece8, 0x1e4eedc, 0x1e4efe6, 0x1e4f000, 0x1e5eee6,
    0x1e5efdc, 0x1e5f000, 0x1e8d0dc, 0x1e8d700, 0x1e944e6, 0x1e94a07, 0x1e94b00
};

static const uint32_t jmb_decomposed_runs[] = {
    192, 0, 199, 6, 209, 15, 217, 21, 224, 26, 231, 32, 241, 41, 249, 47, 255, 52, 274, 69, 296, 89, 308, 98, 313, 102,
    323, 108, 332, 114, 340, 120, 360, 138, 416, 161, 431, 163, 461, 165, 478, 181, 486, 187, 500, 198, 504, 200, 542,
    236, 550, 238, 832, 252, 835, 254, 884, 256, 894, 257, 901, 258, 908, 264, 910, 265, 938, 268, 970, 275, 979, 280,
    1024, 282, 1027, 284, 1031, 285, 1036, 286, 1049, 289, 1081, 290, 1104, 291, 1107, 293, 1111, 294, 1116, 295, 1142,
    298, 1217, 300, 1232, 302, 1238, 306, 1242, 308, 1250, 314, 1258, 320, 1272, 332, 1570, 334, 1728, 339, 1730, 340,
    1747, 341, 2345, 342, 2353, 343, 2356, 344, 2392, 345, 2507, 353, 2524, 355, 2527, 357, 2611, 358, 2614, 359, 2649,
    360, 2654, 363, 2888, 364, 2891, 365, 2908, 367, 2964, 369, 3018, 370, 3144, 373, 3264, 374, 3271, 375, 3274, 377,
    3402, 379, 3546, 382, 3548, 383, 3907, 386, 3917, 387, 3922, 388, 3927, 389, 3932, 390, 3945, 391, 3955, 392, 3957,
    393, 3960, 395, 3969, 396, 3987, 397, 3997, 398, 4002, 399, 4007, 400, 4012, 401, 4025, 402, 4134, 403, 6918, 404,
    6920, 405, 6922, 406, 6924, 407, 6926, 408, 6930, 409, 6971, 410, 6973, 411, 6976, 412, 6979, 414, 7680, 415, 7835,
    569, 7840, 570, 7936, 660, 7960, 682, 7968, 688, 8008, 726, 8016, 732, 8025, 740, 8027, 741, 8029, 742, 8031, 743,
    8064, 774, 8118, 827, 8126, 834, 8129, 835, 8134, 839, 8150, 853, 8157, 859, 8178, 878, 8182, 881, 8192, 889, 8486,
    891, 8490, 892, 8602, 894, 8622, 896, 8653, 897, 8708, 900, 8713, 901, 8716, 902, 8740, 903, 8742, 904, 8769, 905,
    8772, 906, 8775, 907, 8777, 908, 8800, 909, 8802, 910, 8813, 911, 8820, 916, 8824, 918, 8832, 920, 8836, 922, 8840,
    924, 8876, 926, 8928, 930, 8938, 934, 9001, 938, 10972, 940, 12364, 941, 12366, 942, 12368, 943, 12370, 944, 12372,
    945, 12374, 946, 12376, 947, 12378, 948, 12380, 949, 12382, 950, 12384, 951, 12386, 952, 12389, 953, 12391, 954,
    12393, 955, 12400, 956, 12403, 958, 12406, 960, 12409, 962, 12412, 964, 12436, 966, 12446, 967, 12460, 968, 12462,
    969, 12464, 970, 12466, 971, 12468, 972, 12470, 973, 12472, 974, 12474, 975, 12476, 976, 12478, 977, 12480, 978,
    12482, 979, 12485, 980, 12487, 981, 12489, 982, 12496, 983, 12499, 985, 12502, 987, 12505, 989, 12508, 991, 12532,
    993, 12535, 994, 12542, 998, 63744, 999, 64016, 1269, 64018, 1270, 64021, 1271, 64032, 1281, 64034, 1282, 64037,
    1283, 64042, 1285, 64112, 1353, 64285, 1459, 64287, 1460, 64298, 1461, 64312, 1474, 64318, 1479, 64320, 1480, 64323,
    1482, 64326, 1484, 67017, 1493, 67044, 1494, 69786, 1495, 69788, 1496, 69803, 1497, 69934, 1498, 70475, 1500, 70531,
    1502, 70533, 1503, 70542, 1504, 70545, 1505, 70597, 1506, 70599, 1507, 70843, 1509, 70846, 1511, 71098, 1512, 71992,
    1514, 90401, 1515, 93544, 1523, 119134, 1526, 119227, 1533, 194560, 1539
};

static const uint32_t jmb_decomposed[] = {
    65, 768, 65, 769, 65, 770, 65, 771, 65, 776, 65, 778, 67, 807, 69, 768, 69, 769, 69, 770, 69, 776, 73, 768, 73, 769,
    73, 770, 73, 776, 78, 771, 79, 768, 79, 769, 79, 770, 79, 771, 79, 776, 85, 768, 85, 769, 85, 770, 85, 776, 89, 769,
    97, 768, 97, 769, 97, 770, 97, 771, 97, 776, 97, 778, 99, 807, 101, 768, 101, 769, 101, 770, 101, 776, 105, 768,
    105, 769, 105, 770, 105, 776, 110, 771, 111, 768, 111, 769, 111, 770, 111, 771, 111, 776, 117, 768, 117, 769, 117,
    770, 117, 776, 121, 769, 121, 776, 65, 772, 97, 772, 65, 774, 97, 774, 65, 808, 97, 808, 67, 769, 99, 769, 67, 770,
    99, 770, 67, 775, 99, 775, 67, 780, 99, 780, 68, 780, 100, 780, 69, 772, 101, 772, 69, 774, 101, 774, 69, 775, 101,
    775, 69, 808, 101, 808, 69, 780, 101, 780, 71, 770, 103, 770, 71, 774, 103, 774, 71, 775, 103, 775, 71, 807, 103,
    807, 72, 770, 104, 770, 73, 771, 105, 771, 73, 772, 105, 772, 73, 774, 105, 774, 73, 808, 105, 808, 73, 775, 74,
    770, 106, 770, 75, 807, 107, 807, 76, 769, 108, 769, 76, 807, 108, 807, 76, 780, 108, 780, 78, 769, 110, 769, 78,
    807, 110, 807, 78, 780, 110, 780, 79, 772, 111, 772, 79, 774, 111, 774, 79, 779, 111, 779, 82, 769, 114, 769, 82,
    807, 114, 807, 82, 780, 114, 780, 83, 769, 115, 769, 83, 770, 115, 770, 83, 807, 115, 807, 83, 780, 115, 780, 84,
    807, 116, 807, 84, 780, 116, 780, 85, 771, 117, 771, 85, 772, 117, 772, 85, 774, 117, 774, 85, 778, 117, 778, 85,
    779, 117, 779, 85, 808, 117, 808, 87, 770, 119, 770, 89, 770, 121, 770, 89, 776, 90, 769, 122, 769, 90, 775, 122,
    775, 90, 780, 122, 780, 79, 795, 111, 795, 85, 795, 117, 795, 65, 780, 97, 780, 73, 780, 105, 780, 79, 780, 111,
    780, 85, 780, 117, 780, 220, 772, 252, 772, 220, 769, 252, 769, 220, 780, 252, 780, 220, 768, 252, 768, 196, 772,
    228, 772, 550, 772, 551, 772, 198, 772, 230, 772, 71, 780, 103, 780, 75, 780, 107, 780, 79, 808, 111, 808, 490, 772,
    491, 772, 439, 780, 658, 780, 106, 780, 71, 769, 103, 769, 78, 768, 110, 768, 197, 769, 229, 769, 198, 769, 230,
    769, 216, 769, 248, 769, 65, 783, 97, 783, 65, 785, 97, 785, 69, 783, 101, 783, 69, 785, 101, 785, 73, 783, 105,
    783, 73, 785, 105, 785, 79, 783, 111, 783, 79, 785, 111, 785, 82, 783, 114, 783, 82, 785, 114, 785, 85, 783, 117,
    783, 85, 785, 117, 785, 83, 806, 115, 806, 84, 806, 116, 806, 72, 780, 104, 780, 65, 775, 97, 775, 69, 807, 101,
    807, 214, 772, 246, 772, 213, 772, 245, 772, 79, 775, 111, 775, 558, 772, 559, 772, 89, 772, 121, 772, 768, 0, 769,
    0, 787, 0, 776, 769, 697, 0, 59, 0, 168, 769, 913, 769, 183, 0, 917, 769, 919, 769, 921, 769, 927, 769, 933, 769,
    937, 769, 970, 769, 921, 776, 933, 776, 945, 769, 949, 769, 951, 769, 953, 769, 971, 769, 953, 776, 965, 776, 959,
    769, 965, 769, 969, 769, 978, 769, 978, 776, 1045, 768, 1045, 776, 1043, 769, 1030, 776, 1050, 769, 1048, 768, 1059,
    774, 1048, 774, 1080, 774, 1077, 768, 1077, 776, 1075, 769, 1110, 776, 1082, 769, 1080, 768, 1091, 774, 1140, 783,
    1141, 783, 1046, 774, 1078, 774, 1040, 774, 1072, 774, 1040, 776, 1072, 776, 1045, 774, 1077, 774, 1240, 776, 1241,
    776, 1046, 776, 1078, 776, 1047, 776, 1079, 776, 1048, 772, 1080, 772, 1048, 776, 1080, 776, 1054, 776, 1086, 776,
    1256, 776, 1257, 776, 1069, 776, 1101, 776, 1059, 772, 1091, 772, 1059, 776, 1091, 776, 1059, 779, 1091, 779, 1063,
    776, 1095, 776, 1067, 776, 1099, 776, 1575, 1619, 1575, 1620, 1608, 1620, 1575, 1621, 1610, 1620, 1749, 1620, 1729,
    1620, 1746, 1620, 2344, 2364, 2352, 2364, 2355, 2364, 2325, 2364, 2326, 2364, 2327, 2364, 2332, 2364, 2337, 2364,
    2338, 2364, 2347, 2364, 2351, 2364, 2503, 2494, 2503, 2519, 2465, 2492, 2466, 2492, 2479, 2492, 2610, 2620, 2616,
    2620, 2582, 2620, 2583, 2620, 2588, 2620, 2603, 2620, 2887, 2902, 2887, 2878, 2887, 2903, 2849, 2876, 2850, 2876,
    2962, 3031, 3014, 3006, 3015, 3006, 3014, 3031, 3142, 3158, 3263, 3285, 3270, 3285, 3270, 3286, 3270, 3266, 3274,
    3285, 3398, 3390, 3399, 3390, 3398, 3415, 3545, 3530, 3545, 3535, 3548, 3530, 3545, 3551, 3906, 4023, 3916, 4023,
    3921, 4023, 3926, 4023, 3931, 4023, 3904, 4021, 3953, 3954, 3953, 3956, 4018, 3968, 4019, 3968, 3953, 3968, 3986,
    4023, 3996, 4023, 4001, 4023, 4006, 4023, 4011, 4023, 3984, 4021, 4133, 4142, 6917, 6965, 6919, 6965, 6921, 6965,
    6923, 6965, 6925, 6965, 6929, 6965, 6970, 6965, 6972, 6965, 6974, 6965, 6975, 6965, 6978, 6965, 65, 805, 97, 805,
    66, 775, 98, 775, 66, 803, 98, 803, 66, 817, 98, 817, 199, 769, 231, 769, 68, 775, 100, 775, 68, 803, 100, 803, 68,
    817, 100, 817, 68, 807, 100, 807, 68, 813, 100, 813, 274, 768, 275, 768, 274, 769, 275, 769, 69, 813, 101, 813, 69,
    816, 101, 816, 552, 774, 553, 774, 70, 775, 102, 775, 71, 772, 103, 772, 72, 775, 104, 775, 72, 803, 104, 803, 72,
    776, 104, 776, 72, 807, 104, 807, 72, 814, 104, 814, 73, 816, 105, 816, 207, 769, 239, 769, 75, 769, 107, 769, 75,
    803, 107, 803, 75, 817, 107, 817, 76, 803, 108, 803, 7734, 772, 7735, 772, 76, 817, 108, 817, 76, 813, 108, 813, 77,
    769, 109, 769, 77, 775, 109, 775, 77, 803, 109, 803, 78, 775, 110, 775, 78, 803, 110, 803, 78, 817, 110, 817, 78,
    813, 110, 813, 213, 769, 245, 769, 213, 776, 245, 776, 332, 768, 333, 768, 332, 769, 333, 769, 80, 769, 112, 769,
    80, 775, 112, 775, 82, 775, 114, 775, 82, 803, 114, 803, 7770, 772, 7771, 772, 82, 817, 114, 817, 83, 775, 115, 775,
    83, 803, 115, 803, 346, 775, 347, 775, 352, 775, 353, 775, 7778, 775, 7779, 775, 84, 775, 116, 775, 84, 803, 116,
    803, 84, 817, 116, 817, 84, 813, 116, 813, 85, 804, 117, 804, 85, 816, 117, 816, 85, 813, 117, 813, 360, 769, 361,
    769, 362, 776, 363, 776, 86, 771, 118, 771, 86, 803, 118, 803, 87, 768, 119, 768, 87, 769, 119, 769, 87, 776, 119,
    776, 87, 775, 119, 775, 87, 803, 119, 803, 88, 775, 120, 775, 88, 776, 120, 776, 89, 775, 121, 775, 90, 770, 122,
    770, 90, 803, 122, 803, 90, 817, 122, 817, 104, 817, 116, 776, 119, 778, 121, 778, 383, 775, 65, 803, 97, 803, 65,
    777, 97, 777, 194, 769, 226, 769, 194, 768, 226, 768, 194, 777, 226, 777, 194, 771, 226, 771, 7840, 770, 7841, 770,
    258, 769, 259, 769, 258, 768, 259, 768, 258, 777, 259, 777, 258, 771, 259, 771, 7840, 774, 7841, 774, 69, 803, 101,
    803, 69, 777, 101, 777, 69, 771, 101, 771, 202, 769, 234, 769, 202, 768, 234, 768, 202, 777, 234, 777, 202, 771,
    234, 771, 7864, 770, 7865, 770, 73, 777, 105, 777, 73, 803, 105, 803, 79, 803, 111, 803, 79, 777, 111, 777, 212,
    769, 244, 769, 212, 768, 244, 768, 212, 777, 244, 777, 212, 771, 244, 771, 7884, 770, 7885, 770, 416, 769, 417, 769,
    416, 768, 417, 768, 416, 777, 417, 777, 416, 771, 417, 771, 416, 803, 417, 803, 85, 803, 117, 803, 85, 777, 117,
    777, 431, 769, 432, 769, 431, 768, 432, 768, 431, 777, 432, 777, 431, 771, 432, 771, 431, 803, 432, 803, 89, 768,
    121, 768, 89, 803, 121, 803, 89, 777, 121, 777, 89, 771, 121, 771, 945, 787, 945, 788, 7936, 768, 7937, 768, 7936,
    769, 7937, 769, 7936, 834, 7937, 834, 913, 787, 913, 788, 7944, 768, 7945, 768, 7944, 769, 7945, 769, 7944, 834,
    7945, 834, 949, 787, 949, 788, 7952, 768, 7953, 768, 7952, 769, 7953, 769, 917, 787, 917, 788, 7960, 768, 7961, 768,
    7960, 769, 7961, 769, 951, 787, 951, 788, 7968, 768, 7969, 768, 7968, 769, 7969, 769, 7968, 834, 7969, 834, 919,
    787, 919, 788, 7976, 768, 7977, 768, 7976, 769, 7977, 769, 7976, 834, 7977, 834, 953, 787, 953, 788, 7984, 768,
    7985, 768, 7984, 769, 7985, 769, 7984, 834, 7985, 834, 921, 787, 921, 788, 7992, 768, 7993, 768, 7992, 769, 7993,
    769, 7992, 834, 7993, 834, 959, 787, 959, 788, 8000, 768, 8001, 768, 8000, 769, 8001, 769, 927, 787, 927, 788, 8008,
    768, 8009, 768, 8008, 769, 8009, 769, 965, 787, 965, 788, 8016, 768, 8017, 768, 8016, 769, 8017, 769, 8016, 834,
    8017, 834, 933, 788, 8025, 768, 8025, 769, 8025, 834, 969, 787, 969, 788, 8032, 768, 8033, 768, 8032, 769, 8033,
    769, 8032, 834, 8033, 834, 937, 787, 937, 788, 8040, 768, 8041, 768, 8040, 769, 8041, 769, 8040, 834, 8041, 834,
    945, 768, 940, 0, 949, 768, 941, 0, 951, 768, 942, 0, 953, 768, 943, 0, 959, 768, 972, 0, 965, 768, 973, 0, 969,
    768, 974, 0, 7936, 837, 7937, 837, 7938, 837, 7939, 837, 7940, 837, 7941, 837, 7942, 837, 7943, 837, 7944, 837,
    7945, 837, 7946, 837, 7947, 837, 7948, 837, 7949, 837, 7950, 837, 7951, 837, 7968, 837, 7969, 837, 7970, 837, 7971,
    837, 7972, 837, 7973, 837, 7974, 837, 7975, 837, 7976, 837, 7977, 837, 7978, 837, 7979, 837, 7980, 837, 7981, 837,
    7982, 837, 7983, 837, 8032, 837, 8033, 837, 8034, 837, 8035, 837, 8036, 837, 8037, 837, 8038, 837, 8039, 837, 8040,
    837, 8041, 837, 8042, 837, 8043, 837, 8044, 837, 8045, 837, 8046, 837, 8047, 837, 945, 774, 945, 772, 8048, 837,
    945, 837, 940, 837, 945, 834, 8118, 837, 913, 774, 913, 772, 913, 768, 902, 0, 913, 837, 953, 0, 168, 834, 8052,
    837, 951, 837, 942, 837, 951, 834, 8134, 837, 917, 768, 904, 0, 919, 768, 905, 0, 919, 837, 8127, 768, 8127, 769,
    8127, 834, 953, 774, 953, 772, 970, 768, 912, 0, 953, 834, 970, 834, 921, 774, 921, 772, 921, 768, 906, 0, 8190,
    768, 8190, 769, 8190, 834, 965, 774, 965, 772, 971, 768, 944, 0, 961, 787, 961, 788, 965, 834, 971, 834, 933, 774,
    933, 772, 933, 768, 910, 0, 929, 788, 168, 768, 901, 0, 96, 0, 8060, 837, 969, 837, 974, 837, 969, 834, 8182, 837,
    927, 768, 908, 0, 937, 768, 911, 0, 937, 837, 180, 0, 8194, 0, 8195, 0, 937, 0, 75, 0, 197, 0, 8592, 824, 8594, 824,
    8596, 824, 8656, 824, 8660, 824, 8658, 824, 8707, 824, 8712, 824, 8715, 824, 8739, 824, 8741, 824, 8764, 824, 8771,
    824, 8773, 824, 8776, 824, 61, 824, 8801, 824, 8781, 824, 60, 824, 62, 824, 8804, 824, 8805, 824, 8818, 824, 8819,
    824, 8822, 824, 8823, 824, 8826, 824, 8827, 824, 8834, 824, 8835, 824, 8838, 824, 8839, 824, 8866, 824, 8872, 824,
    8873, 824, 8875, 824, 8828, 824, 8829, 824, 8849, 824, 8850, 824, 8882, 824, 8883, 824, 8884, 824, 8885, 824, 12296,
    0, 12297, 0, 10973, 824, 12363, 12441, 12365, 12441, 12367, 12441, 12369, 12441, 12371, 12441, 12373, 12441, 12375,
    12441, 12377, 12441, 12379, 12441, 12381, 12441, 12383, 12441, 12385, 12441, 12388, 12441, 12390, 12441, 12392,
    12441, 12399, 12441, 12399, 12442, 12402, 12441, 12402, 12442, 12405, 12441, 12405, 12442, 12408, 12441, 12408,
    12442, 12411, 12441, 12411, 12442, 12358, 12441, 12445, 12441, 12459, 12441, 12461, 12441, 12463, 12441, 12465,
    12441, 12467, 12441, 12469, 12441, 12471, 12441, 12473, 12441, 12475, 12441, 12477, 12441, 12479, 12441, 12481,
    12441, 12484, 12441, 12486, 12441, 12488, 12441, 12495, 12441, 12495, 12442, 12498, 12441, 12498, 12442, 12501,
    12441, 12501, 12442, 12504, 12441, 12504, 12442, 12507, 12441, 12507, 12442, 12454, 12441, 12527, 12441, 12528,
    12441, 12529, 12441, 12530, 12441, 12541, 12441, 35912, 0, 26356, 0, 36554, 0, 36040, 0, 28369, 0, 20018, 0, 21477,
    0, 40860, 0, 40860, 0, 22865, 0, 37329, 0, 21895, 0, 22856, 0, 25078, 0, 30313, 0, 32645, 0, 34367, 0, 34746, 0,
    35064, 0, 37007, 0, 27138, 0, 27931, 0, 28889, 0, 29662, 0, 33853, 0, 37226, 0, 39409, 0, 20098, 0, 21365, 0, 27396,
    0, 29211, 0, 34349, 0, 40478, 0, 23888, 0, 28651, 0, 34253, 0, 35172, 0, 25289, 0, 33240, 0, 34847, 0, 24266, 0,
    26391, 0, 28010, 0, 29436, 0, 37070, 0, 20358, 0, 20919, 0, 21214, 0, 25796, 0, 27347, 0, 29200, 0, 30439, 0, 32769,
    0, 34310, 0, 34396, 0, 36335, 0, 38706, 0, 39791, 0, 40442, 0, 30860, 0, 31103, 0, 32160, 0, 33737, 0, 37636, 0,
    40575, 0, 35542, 0, 22751, 0, 24324, 0, 31840, 0, 32894, 0, 29282, 0, 30922, 0, 36034, 0, 38647, 0, 22744, 0, 23650,
    0, 27155, 0, 28122, 0, 28431, 0, 32047, 0, 32311, 0, 38475, 0, 21202, 0, 32907, 0, 20956, 0, 20940, 0, 31260, 0,
    32190, 0, 33777, 0, 38517, 0, 35712, 0, 25295, 0, 27138, 0, 35582, 0, 20025, 0, 23527, 0, 24594, 0, 29575, 0, 30064,
    0, 21271, 0, 30971, 0, 20415, 0, 24489, 0, 19981, 0, 27852, 0, 25976, 0, 32034, 0, 21443, 0, 22622, 0, 30465, 0,
    33865, 0, 35498, 0, 27578, 0, 36784, 0, 27784, 0, 25342, 0, 33509, 0, 25504, 0, 30053, 0, 20142, 0, 20841, 0, 20937,
    0, 26753, 0, 31975, 0, 33391, 0, 35538, 0, 37327, 0, 21237, 0, 21570, 0, 22899, 0, 24300, 0, 26053, 0, 28670, 0,
    31018, 0, 38317, 0, 39530, 0, 40599, 0, 40654, 0, 21147, 0, 26310, 0, 27511, 0, 36706, 0, 24180, 0, 24976, 0, 25088,
    0, 25754, 0, 28451, 0, 29001, 0, 29833, 0, 31178, 0, 32244, 0, 32879, 0, 36646, 0, 34030, 0, 36899, 0, 37706, 0,
    21015, 0, 21155, 0, 21693, 0, 28872, 0, 35010, 0, 35498, 0, 24265, 0, 24565, 0, 25467, 0, 27566, 0, 31806, 0, 29557,
    0, 20196, 0, 22265, 0, 23527, 0, 23994, 0, 24604, 0, 29618, 0, 29801, 0, 32666, 0, 32838, 0, 37428, 0, 38646, 0,
    38728, 0, 38936, 0, 20363, 0, 31150, 0, 37300, 0, 38584, 0, 24801, 0, 20102, 0, 20698, 0, 23534, 0, 23615, 0, 26009,
    0, 27138, 0, 29134, 0, 30274, 0, 34044, 0, 36988, 0, 40845, 0, 26248, 0, 38446, 0, 21129, 0, 26491, 0, 26611, 0,
    27969, 0, 28316, 0, 29705, 0, 30041, 0, 30827, 0, 32016, 0, 39006, 0, 20845, 0, 25134, 0, 38520, 0, 20523, 0, 23833,
    0, 28138, 0, 36650, 0, 24459, 0, 24900, 0, 26647, 0, 29575, 0, 38534, 0, 21033, 0, 21519, 0, 23653, 0, 26131, 0,
    26446, 0, 26792, 0, 27877, 0, 29702, 0, 30178, 0, 32633, 0, 35023, 0, 35041, 0, 37324, 0, 38626, 0, 21311, 0, 28346,
    0, 21533, 0, 29136, 0, 29848, 0, 34298, 0, 38563, 0, 40023, 0, 40607, 0, 26519, 0, 28107, 0, 33256, 0, 31435, 0,
    31520, 0, 31890, 0, 29376, 0, 28825, 0, 35672, 0, 20160, 0, 33590, 0, 21050, 0, 20999, 0, 24230, 0, 25299, 0, 31958,
    0, 23429, 0, 27934, 0, 26292, 0, 36667, 0, 34892, 0, 38477, 0, 35211, 0, 24275, 0, 20800, 0, 21952, 0, 22618, 0,
    26228, 0, 20958, 0, 29482, 0, 30410, 0, 31036, 0, 31070, 0, 31077, 0, 31119, 0, 38742, 0, 31934, 0, 32701, 0, 34322,
    0, 35576, 0, 36920, 0, 37117, 0, 39151, 0, 39164, 0, 39208, 0, 40372, 0, 37086, 0, 38583, 0, 20398, 0, 20711, 0,
    20813, 0, 21193, 0, 21220, 0, 21329, 0, 21917, 0, 22022, 0, 22120, 0, 22592, 0, 22696, 0, 23652, 0, 23662, 0, 24724,
    0, 24936, 0, 24974, 0, 25074, 0, 25935, 0, 26082, 0, 26257, 0, 26757, 0, 28023, 0, 28186, 0, 28450, 0, 29038, 0,
    29227, 0, 29730, 0, 30865, 0, 31038, 0, 31049, 0, 31048, 0, 31056, 0, 31062, 0, 31069, 0, 31117, 0, 31118, 0, 31296,
    0, 31361, 0, 31680, 0, 32244, 0, 32265, 0, 32321, 0, 32626, 0, 32773, 0, 33261, 0, 33401, 0, 33401, 0, 33879, 0,
    35088, 0, 35222, 0, 35585, 0, 35641, 0, 36051, 0, 36104, 0, 36790, 0, 36920, 0, 38627, 0, 38911, 0, 38971, 0, 24693,
    0, 148206, 0, 33304, 0, 20006, 0, 20917, 0, 20840, 0, 20352, 0, 20805, 0, 20864, 0, 21191, 0, 21242, 0, 21917, 0,
    21845, 0, 21913, 0, 21986, 0, 22618, 0, 22707, 0, 22852, 0, 22868, 0, 23138, 0, 23336, 0, 24274, 0, 24281, 0, 24425,
    0, 24493, 0, 24792, 0, 24910, 0, 24840, 0, 24974, 0, 24928, 0, 25074, 0, 25140, 0, 25540, 0, 25628, 0, 25682, 0,
    25942, 0, 26228, 0, 26391, 0, 26395, 0, 26454, 0, 27513, 0, 27578, 0, 27969, 0, 28379, 0, 28363, 0, 28450, 0, 28702,
    0, 29038, 0, 30631, 0, 29237, 0, 29359, 0, 29482, 0, 29809, 0, 29958, 0, 30011, 0, 30237, 0, 30239, 0, 30410, 0,
    30427, 0, 30452, 0, 30538, 0, 30528, 0, 30924, 0, 31409, 0, 31680, 0, 31867, 0, 32091, 0, 32244, 0, 32574, 0, 32773,
    0, 33618, 0, 33775, 0, 34681, 0, 35137, 0, 35206, 0, 35222, 0, 35519, 0, 35576, 0, 35531, 0, 35585, 0, 35582, 0,
    35565, 0, 35641, 0, 35722, 0, 36104, 0, 36664, 0, 36978, 0, 37273, 0, 37494, 0, 38524, 0, 38627, 0, 38742, 0, 38875,
    0, 38911, 0, 38923, 0, 38971, 0, 39698, 0, 40860, 0, 141386, 0, 141380, 0, 144341, 0, 15261, 0, 16408, 0, 16441, 0,
    152137, 0, 154832, 0, 163539, 0, 40771, 0, 40846, 0, 1497, 1460, 1522, 1463, 1513, 1473, 1513, 1474, 64329, 1473,
    64329, 1474, 1488, 1463, 1488, 1464, 1488, 1468, 1489, 1468, 1490, 1468, 1491, 1468, 1492, 1468, 1493, 1468, 1494,
    1468, 1496, 1468, 1497, 1468, 1498, 1468, 1499, 1468, 1500, 1468, 1502, 1468, 1504, 1468, 1505, 1468, 1507, 1468,
    1508, 1468, 1510, 1468, 1511, 1468, 1512, 1468, 1513, 1468, 1514, 1468, 1493, 1465, 1489, 1471, 1499, 1471, 1508,
    1471, 67026, 775, 67034, 775, 69785, 69818, 69787, 69818, 69797, 69818, 69937, 69927, 69938, 69927, 70471, 70462,
    70471, 70487, 70530, 70601, 70532, 70587, 70539, 70594, 70544, 70601, 70594, 70594, 70594, 70584, 70594, 70601,
    70841, 70842, 70841, 70832, 70841, 70845, 71096, 71087, 71097, 71087, 71989, 71984, 90398, 90398, 90398, 90409,
    90398, 90399, 90409, 90399, 90398, 90400, 90401, 90399, 90402, 90399, 90401, 90400, 93543, 93543, 93539, 93543,
    93545, 93543, 119127, 119141, 119128, 119141, 119135, 119150, 119135, 119151, 119135, 119152, 119135, 119153,
    119135, 119154, 119225, 119141, 119226, 119141, 119227, 119150, 119228, 119150, 119227, 119151, 119228, 119151,
    20029, 0, 20024, 0, 20033, 0, 131362, 0, 20320, 0, 20398, 0, 20411, 0, 20482, 0, 20602, 0, 20633, 0, 20711, 0,
    20687, 0, 13470, 0, 132666, 0, 20813, 0, 20820, 0, 20836, 0, 20855, 0, 132380, 0, 13497, 0, 20839, 0, 20877, 0,
    132427, 0, 20887, 0, 20900, 0, 20172, 0, 20908, 0, 20917, 0, 168415, 0, 20981, 0, 20995, 0, 13535, 0, 21051, 0,
    21062, 0, 21106, 0, 21111, 0, 13589, 0, 21191, 0, 21193, 0, 21220, 0, 21242, 0, 21253, 0, 21254, 0, 21271, 0, 21321,
    0, 21329, 0, 21338, 0, 21363, 0, 21373, 0, 21375, 0, 21375, 0, 21375, 0, 133676, 0, 28784, 0, 21450, 0, 21471, 0,
    133987, 0, 21483, 0, 21489, 0, 21510, 0, 21662, 0, 21560, 0, 21576, 0, 21608, 0, 21666, 0, 21750, 0, 21776, 0,
    21843, 0, 21859, 0, 21892, 0, 21892, 0, 21913, 0, 21931, 0, 21939, 0, 21954, 0, 22294, 0, 22022, 0, 22295, 0, 22097,
    0, 22132, 0, 20999, 0, 22766, 0, 22478, 0, 22516, 0, 22541, 0, 22411, 0, 22578, 0, 22577, 0, 22700, 0, 136420, 0,
    22770, 0, 22775, 0, 22790, 0, 22810, 0, 22818, 0, 22882, 0, 136872, 0, 136938, 0, 23020, 0, 23067, 0, 23079, 0,
    23000, 0, 23142, 0, 14062, 0, 14076, 0, 23304, 0, 23358, 0, 23358, 0, 137672, 0, 23491, 0, 23512, 0, 23527, 0,
    23539, 0, 138008, 0, 23551, 0, 23558, 0, 24403, 0, 23586, 0, 14209, 0, 23648, 0, 23662, 0, 23744, 0, 23693, 0,
    138724, 0, 23875, 0, 138726, 0, 23918, 0, 23915, 0, 23932, 0, 24033, 0, 24034, 0, 14383, 0, 24061, 0, 24104, 0,
    24125, 0, 24169, 0, 14434, 0, 139651, 0, 14460, 0, 24240, 0, 24243, 0, 24246, 0, 24266, 0, 172946, 0, 24318, 0,
    140081, 0, 140081, 0, 33281, 0, 24354, 0, 24354, 0, 14535, 0, 144056, 0, 156122, 0, 24418, 0, 24427, 0, 14563, 0,
    24474, 0, 24525, 0, 24535, 0, 24569, 0, 24705, 0, 14650, 0, 14620, 0, 24724, 0, 141012, 0, 24775, 0, 24904, 0,
    24908, 0, 24910, 0, 24908, 0, 24954, 0, 24974, 0, 25010, 0, 24996, 0, 25007, 0, 25054, 0, 25074, 0, 25078, 0, 25104,
    0, 25115, 0, 25181, 0, 25265, 0, 25300, 0, 25424, 0, 142092, 0, 25405, 0, 25340, 0, 25448, 0, 25475, 0, 25572, 0,
    142321, 0, 25634, 0, 25541, 0, 25513, 0, 14894, 0, 25705, 0, 25726, 0, 25757, 0, 25719, 0, 14956, 0, 25935, 0,
    25964, 0, 143370, 0, 26083, 0, 26360, 0, 26185, 0, 15129, 0, 26257, 0, 15112, 0, 15076, 0, 20882, 0, 20885, 0,
    26368, 0, 26268, 0, 32941, 0, 17369, 0, 26391, 0, 26395, 0, 26401, 0, 26462, 0, 26451, 0, 144323, 0, 15177, 0,
    26618, 0, 26501, 0, 26706, 0, 26757, 0, 144493, 0, 26766, 0, 26655, 0, 26900, 0, 15261, 0, 26946, 0, 27043, 0,
    27114, 0, 27304, 0, 145059, 0, 27355, 0, 15384, 0, 27425, 0, 145575, 0, 27476, 0, 15438, 0, 27506, 0, 27551, 0,
    27578, 0, 27579, 0, 146061, 0, 138507, 0, 146170, 0, 27726, 0, 146620, 0, 27839, 0, 27853, 0, 27751, 0, 27926, 0,
    27966, 0, 28023, 0, 27969, 0, 28009, 0, 28024, 0, 28037, 0, 146718, 0, 27956, 0, 28207, 0, 28270, 0, 15667, 0,
    28363, 0, 28359, 0, 147153, 0, 28153, 0, 28526, 0, 147294, 0, 147342, 0, 28614, 0, 28729, 0, 28702, 0, 28699, 0,
    15766, 0, 28746, 0, 28797, 0, 28791, 0, 28845, 0, 132389, 0, 28997, 0, 148067, 0, 29084, 0, 148395, 0, 29224, 0,
    29237, 0, 29264, 0, 149000, 0, 29312, 0, 29333, 0, 149301, 0, 149524, 0, 29562, 0, 29579, 0, 16044, 0, 29605, 0,
    16056, 0, 16056, 0, 29767, 0, 29788, 0, 29809, 0, 29829, 0, 29898, 0, 16155, 0, 29988, 0, 150582, 0, 30014, 0,
    150674, 0, 30064, 0, 139679, 0, 30224, 0, 151457, 0, 151480, 0, 151620, 0, 16380, 0, 16392, 0, 30452, 0, 151795, 0,
    151794, 0, 151833, 0, 151859, 0, 30494, 0, 30495, 0, 30495, 0, 30538, 0, 16441, 0, 30603, 0, 16454, 0, 16534, 0,
    152605, 0, 30798, 0, 30860, 0, 30924, 0, 16611, 0, 153126, 0, 31062, 0, 153242, 0, 153285, 0, 31119, 0, 31211, 0,
    16687, 0, 31296, 0, 31306, 0, 31311, 0, 153980, 0, 154279, 0, 154279, 0, 31470, 0, 16898, 0, 154539, 0, 31686, 0,
    31689, 0, 16935, 0, 154752, 0, 31954, 0, 17056, 0, 31976, 0, 31971, 0, 32000, 0, 155526, 0, 32099, 0, 17153, 0,
    32199, 0, 32258, 0, 32325, 0, 17204, 0, 156200, 0, 156231, 0, 17241, 0, 156377, 0, 32634, 0, 156478, 0, 32661, 0,
    32762, 0, 32773, 0, 156890, 0, 156963, 0, 32864, 0, 157096, 0, 32880, 0, 144223, 0, 17365, 0, 32946, 0, 33027, 0,
    17419, 0, 33086, 0, 23221, 0, 157607, 0, 157621, 0, 144275, 0, 144284, 0, 33281, 0, 33284, 0, 36766, 0, 17515, 0,
    33425, 0, 33419, 0, 33437, 0, 21171, 0, 33457, 0, 33459, 0, 33469, 0, 33510, 0, 158524, 0, 33509, 0, 33565, 0,
    33635, 0, 33709, 0, 33571, 0, 33725, 0, 33767, 0, 33879, 0, 33619, 0, 33738, 0, 33740, 0, 33756, 0, 158774, 0,
    159083, 0, 158933, 0, 17707, 0, 34033, 0, 34035, 0, 34070, 0, 160714, 0, 34148, 0, 159532, 0, 17757, 0, 17761, 0,
    159665, 0, 159954, 0, 17771, 0, 34384, 0, 34396, 0, 34407, 0, 34409, 0, 34473, 0, 34440, 0, 34574, 0, 34530, 0,
    34681, 0, 34600, 0, 34667, 0, 34694, 0, 17879, 0, 34785, 0, 34817, 0, 17913, 0, 34912, 0, 34915, 0, 161383, 0,
    35031, 0, 35038, 0, 17973, 0, 35066, 0, 13499, 0, 161966, 0, 162150, 0, 18110, 0, 18119, 0, 35488, 0, 35565, 0,
    35722, 0, 35925, 0, 162984, 0, 36011, 0, 36033, 0, 36123, 0, 36215, 0, 163631, 0, 133124, 0, 36299, 0, 36284, 0,
    36336, 0, 133342, 0, 36564, 0, 36664, 0, 165330, 0, 165357, 0, 37012, 0, 37105, 0, 37137, 0, 165678, 0, 37147, 0,
    37432, 0, 37591, 0, 37592, 0, 37500, 0, 37881, 0, 37909, 0, 166906, 0, 38283, 0, 18837, 0, 38327, 0, 167287, 0,
    18918, 0, 38595, 0, 23986, 0, 38691, 0, 168261, 0, 168474, 0, 19054, 0, 19062, 0, 38880, 0, 168970, 0, 19122, 0,
    169110, 0, 38923, 0, 38923, 0, 38953, 0, 169398, 0, 39138, 0, 19251, 0, 39209, 0, 39335, 0, 39362, 0, 39422, 0,
    19406, 0, 170800, 0, 39698, 0, 40000, 0, 40189, 0, 19662, 0, 19693, 0, 40295, 0, 172238, 0, 19704, 0, 172293, 0,
    172558, 0, 172689, 0, 40635, 0, 19798, 0, 40697, 0, 40702, 0, 40709, 0, 40719, 0, 40726, 0, 40763, 0, 173568, 0
};

static const uint16_t jmb_composed[] = {
    912, 909, 913, 0, 1, 2, 3, 53, 55, 238, 4, 572, 5, 165, 208, 210, 570, 415, 57, 417, 419, 421, 59, 61, 63, 65, 6,
    425, 67, 427, 431, 433, 429, 7, 8, 9, 598, 69, 71, 73, 10, 596, 77, 212, 214, 594, 240, 75, 439, 441, 445, 198, 79,
    447, 81, 83, 187, 85, 87, 449, 453, 236, 451, 455, 457, 11, 12, 13, 89, 91, 93, 97, 14, 610, 167, 216, 218, 612, 95,
    459, 98, 463, 189, 465, 100, 467, 102, 106, 469, 104, 475, 473, 477, 479, 481, 200, 108, 15, 483, 112, 485, 110,
    489, 487, 16, 17, 18, 19, 114, 116, 246, 20, 616, 118, 169, 220, 222, 161, 614, 191, 499, 501, 120, 503, 124, 224,
    226, 505, 122, 509, 126, 128, 511, 132, 513, 232, 130, 521, 136, 523, 234, 134, 527, 525, 21, 22, 23, 138, 140, 142,
    24, 640, 144, 146, 171, 228, 230, 163, 638, 529, 148, 533, 531, 539, 541, 543, 545, 150, 549, 547, 551, 553, 555,
    652, 25, 152, 658, 250, 557, 154, 656, 654, 155, 559, 157, 159, 561, 563, 26, 27, 28, 29, 54, 56, 239, 30, 573, 31,
    166, 209, 211, 571, 416, 58, 418, 420, 422, 60, 62, 64, 66, 32, 426, 68, 428, 432, 434, 430, 33, 34, 35, 599, 70,
    72, 74, 36, 597, 78, 213, 215, 595, 241, 76, 440, 442, 446, 199, 80, 448, 82, 84, 188, 86, 88, 450, 454, 237, 452,
    456, 458, 565, 37, 38, 39, 90, 92, 94, 40, 611, 168, 217, 219, 613, 96, 460, 99, 197, 464, 190, 466, 101, 468, 103,
    107, 470, 105, 476, 474, 478, 480, 482, 201, 109, 41, 484, 113, 486, 111, 490, 488, 42, 43, 44, 45, 115, 117, 247,
    46, 617, 119, 170, 221, 223, 162, 615, 192, 500, 502, 121, 504, 125, 225, 227, 506, 123, 510, 127, 129, 512, 133,
    514, 233, 131, 522, 566, 137, 524, 235, 135, 528, 526, 47, 48, 49, 139, 141, 143, 50, 641, 145, 147, 172, 229, 231,
    164, 639, 530, 149, 534, 532, 540, 542, 544, 546, 151, 550, 548, 567, 552, 554, 556, 653, 51, 153, 659, 251, 558,
    52, 657, 568, 655, 156, 560, 158, 160, 562, 564, 875, 258, 835, 576, 574, 580, 578, 181, 202, 204, 185, 423, 602,
    600, 606, 604, 461, 620, 618, 624, 622, 491, 244, 493, 242, 206, 179, 175, 173, 177, 577, 575, 581, 579, 182, 203,
    205, 186, 424, 603, 601, 607, 605, 462, 621, 619, 625, 623, 492, 245, 494, 243, 207, 180, 176, 174, 178, 586, 584,
    590, 588, 587, 585, 591, 589, 435, 437, 436, 438, 495, 497, 496, 498, 515, 516, 517, 518, 535, 536, 537, 538, 569,
    630, 628, 634, 632, 636, 631, 629, 635, 633, 637, 644, 642, 648, 646, 650, 645, 643, 649, 647, 651, 195, 193, 194,
    183, 184, 443, 444, 248, 249, 196, 831, 259, 830, 829, 668, 669, 833, 841, 261, 682, 683, 843, 262, 696, 697, 845,
    857, 263, 856, 855, 268, 712, 713, 883, 264, 726, 727, 874, 872, 265, 871, 870, 269, 740, 885, 266, 752, 753, 887,
    826, 838, 760, 270, 823, 822, 660, 661, 827, 825, 762, 271, 676, 677, 764, 272, 688, 689, 839, 837, 766, 273, 850,
    849, 275, 704, 705, 853, 768, 277, 720, 721, 866, 867, 770, 278, 863, 862, 276, 732, 733, 868, 772, 279, 744, 745,
    881, 879, 851, 267, 854, 864, 274, 869, 880, 280, 281, 285, 302, 304, 284, 282, 306, 283, 300, 310, 312, 287, 314,
    289, 316, 286, 318, 324, 288, 326, 328, 330, 332, 322, 303, 305, 293, 291, 307, 292, 301, 311, 313, 296, 315, 290,
    317, 295, 319, 325, 297, 327, 329, 331, 333, 323, 294, 298, 299, 308, 309, 320, 321, 334, 335, 337, 336, 338, 340,
    341, 339, 342, 343, 344, 353, 354, 365, 364, 366, 369, 370, 372, 371, 373, 374, 377, 375, 376, 378, 379, 381, 380,
    382, 383, 385, 384, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 471, 472, 507, 508, 519, 520, 582,
    592, 583, 593, 608, 609, 626, 627, 662, 664, 666, 774, 663, 665, 667, 775, 776, 777, 778, 779, 780, 781, 670, 672,
    674, 782, 671, 673, 675, 783, 784, 785, 786, 787, 788, 789, 678, 680, 679, 681, 684, 686, 685, 687, 690, 692, 694,
    790, 691, 693, 695, 791, 792, 793, 794, 795, 796, 797, 698, 700, 702, 798, 699, 701, 703, 799, 800, 801, 802, 803,
    804, 805, 706, 708, 710, 707, 709, 711, 714, 716, 718, 715, 717, 719, 722, 724, 723, 725, 728, 730, 729, 731, 734,
    736, 738, 735, 737, 739, 741, 742, 743, 746, 748, 750, 806, 747, 749, 751, 807, 808, 809, 810, 811, 812, 813, 754,
    756, 758, 814, 755, 757, 759, 815, 816, 817, 818, 819, 820, 821, 824, 836, 878, 828, 846, 847, 848, 840, 882, 859,
    860, 861, 894, 895, 896, 897, 899, 898, 900, 901, 902, 903, 904, 905, 906, 907, 908, 911, 910, 914, 915, 916, 917,
    918, 919, 920, 921, 930, 931, 922, 923, 924, 925, 932, 933, 926, 927, 928, 929, 934, 935, 936, 937, 966, 941, 942,
    943, 944, 945, 946, 947, 948, 949, 950, 951, 952, 953, 954, 955, 956, 957, 958, 959, 960, 961, 962, 963, 964, 965,
    967, 993, 968, 969, 970, 971, 972, 973, 974, 975, 976, 977, 978, 979, 980, 981, 982, 983, 984, 985, 986, 987, 988,
    989, 990, 991, 992, 994, 995, 996, 997, 998, 1493, 1494, 1495, 1496, 1497, 1498, 1499, 1500, 1501, 1502, 1503, 1504,
    1505, 1507, 1506, 1508, 1510, 1509, 1511, 1512, 1513, 1514, 1515, 1517, 1519, 1516, 1520, 1522, 1521, 1518, 1524,
    1523, 1525
};

/* How many of the ascending items, each `stride` numbers, begin with no more than `value`. */
static size_t jmb_count_below(const uint32_t *items, size_t count, size_t stride, uint32_t value)
{
    size_t low = 0;
    while (count > 0) {
        size_t half = count / 2;
        if (items[(low + half) * stride] > value) {
            count = half;
        } else {
            low += half + 1;
            count -= half + 1;
        }
    }
    return low;
}

#define JMB_COUNT(table) (sizeof(table) / sizeof *(table))

static jmb_char_class jmb_class_of(uint32_t c)
{
    size_t step = jmb_count_below(jmb_class_starts, JMB_COUNT(jmb_class_starts), 1, c) - 1;
    const uint16_t *run = jmb_class_runs + step * JMB_CLASS_STEP;
    for (c -= jmb_class_starts[step]; c >= *run / 8u; run++) c -= *run / 8u;
    return (jmb_char_class)(*run & 7);
}

static bool jmb_is_space(uint32_t c)
{
    return jmb_class_of(c) == JMB_CHAR_SPACE;
}

static bool jmb_is_word(uint32_t c)
{
    jmb_char_class kind = jmb_class_of(c);
    return kind == JMB_CHAR_MARK || kind == JMB_CHAR_LETTER || kind == JMB_CHAR_DIGIT;
}

static uint32_t jmb_combining_class(uint32_t c)
{
    const uint32_t *runs = jmb_combining_runs;
    if (c < JMB_FIRST_MARK) return 0;
    return runs[jmb_count_below(runs, JMB_COUNT(jmb_combining_runs), 1, c << 8 | 255) - 1] & 255;
}

/* Hangul syllables are L, V and maybe T: S = ((L * 21) + V) * 28 + T */
enum {
    JMB_HANGUL_S = 0xac00, JMB_HANGUL_L = 0x1100, JMB_HANGUL_V = 0x1161, JMB_HANGUL_T = 0x11a7,
    JMB_HANGUL_LS = 19, JMB_HANGUL_VS = 21, JMB_HANGUL_TS = 28,
    JMB_HANGUL_SS = JMB_HANGUL_LS * JMB_HANGUL_VS * JMB_HANGUL_TS
};

static size_t jmb_decompose_hangul(uint32_t syllable, uint32_t parts[JMB_NFC_PARTS])
{
    uint32_t t = syllable % JMB_HANGUL_TS;
    parts[0] = JMB_HANGUL_L + syllable / (JMB_HANGUL_VS * JMB_HANGUL_TS);
    parts[1] = JMB_HANGUL_V + syllable / JMB_HANGUL_TS % JMB_HANGUL_VS;
    parts[2] = JMB_HANGUL_T + t;
    return t > 0 ? 3 : 2;
}

/* The entry of a character in jmb_decomposed; NULL when it has none. */
static const uint32_t *jmb_find_decomposed(uint32_t c)
{
    const size_t runs = JMB_COUNT(jmb_decomposed_runs) / 2;
    size_t run = jmb_count_below(jmb_decomposed_runs, runs, 2, c), entry, end = JMB_COUNT(jmb_decomposed) / 2;
    if (run == 0) return NULL;
    entry = jmb_decomposed_runs[2 * run - 1] + (c - jmb_decomposed_runs[2 * run - 2]);
    if (run < runs) end = jmb_decomposed_runs[2 * run + 1];
    return entry < end ? &jmb_decomposed[2 * entry] : NULL;
}

/* The canonical decomposition; returns how many characters it has. Only the first one of a step may
 * decompose further. */
static size_t jmb_decompose(uint32_t c, uint32_t parts[JMB_NFC_PARTS])
{
    uint32_t tail[JMB_NFC_PARTS];
    size_t count = 0, i;
    const uint32_t *step;
    if (c - JMB_HANGUL_S < JMB_HANGUL_SS) return jmb_decompose_hangul(c - JMB_HANGUL_S, parts);
    while (count + 1 < JMB_NFC_PARTS && (step = jmb_find_decomposed(c)) != NULL) {
        c = step[0];
        if (step[1]) tail[count++] = step[1];
    }
    parts[0] = c;
    for (i = 0; i < count; i++) parts[1 + i] = tail[count - 1 - i];
    return 1 + count;
}

/* The character of an entry of jmb_decomposed. */
static uint32_t jmb_decomposed_char(uint32_t entry)
{
    size_t run = jmb_count_below(jmb_decomposed_runs + 1, JMB_COUNT(jmb_decomposed_runs) / 2, 2, entry) - 1;
    return jmb_decomposed_runs[2 * run] + (entry - jmb_decomposed_runs[2 * run + 1]);
}

/* The character that two compose to; 0 when they do not. */
static uint32_t jmb_compose(uint32_t first, uint32_t second)
{
    size_t low = 0, high = JMB_COUNT(jmb_composed);
    if (second < JMB_FIRST_MARK) return 0;
    if (first - JMB_HANGUL_L < JMB_HANGUL_LS && second - JMB_HANGUL_V < JMB_HANGUL_VS)
        return JMB_HANGUL_S
            + ((first - JMB_HANGUL_L) * JMB_HANGUL_VS + second - JMB_HANGUL_V) * (uint32_t)JMB_HANGUL_TS;
    if (first - JMB_HANGUL_S < JMB_HANGUL_SS && (first - JMB_HANGUL_S) % JMB_HANGUL_TS == 0
        && second - JMB_HANGUL_T - 1 < JMB_HANGUL_TS - 1)
        return first + (second - JMB_HANGUL_T);
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const uint32_t *pair = &jmb_decomposed[2 * jmb_composed[middle]];
        if (pair[0] == first && pair[1] == second) return jmb_decomposed_char(jmb_composed[middle]);
        if (pair[0] < first || (pair[0] == first && pair[1] < second)) low = middle + 1;
        else high = middle;
    }
    return 0;
}

/* ---- token table --------------------------------------------------------------------------- */

static const uint8_t *jmb_token_data(const jmb_tokenizer *t, uint32_t token, size_t *size)
{
    *size = t->offsets[token + 1] - t->offsets[token];
    return t->text + t->offsets[token];
}

static uint32_t jmb_hash_text(const uint8_t *text, size_t size)
{
    uint8_t tail[8] = { 0 };
    size_t whole = size & ~(size_t)7;
    uint64_t h = jmb_hash64(JMB_HASH_SEED + (uint64_t)size, text, whole);
    memcpy(tail, text + whole, size - whole);
    return (uint32_t)jmb_hash64(h, tail, 8);
}

static uint32_t jmb_hash_pair(uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;
    return (uint32_t)((h ^ h >> 32) * 0x9e3779b97f4a7c15u >> 32);
}

static bool jmb_table_make(jmb_hash_table *table, jmb_heap *heap, uint32_t items)
{
    uint32_t size = 2;
    while (size < items * 2u) size *= 2;
    table->slots = (uint32_t *)jmb_heap_take(heap, size, sizeof *table->slots);
    table->mask = size - 1;
    if (table->slots) memset(table->slots, 0xff, size * sizeof *table->slots);
    return table->slots != NULL;
}

/* The token with this text and one of these flags, or JMB_NO_TOKEN. *slot (may be NULL) is where it would be
 * entered. */
static uint32_t jmb_find_text(
    const jmb_tokenizer *t, const uint8_t *text, size_t size, uint32_t flags, uint32_t *slot)
{
    uint32_t at = jmb_hash_text(text, size) & t->by_text.mask, probes, token = JMB_NO_TOKEN;
    for (probes = 0; probes < JMB_MAX_PROBES; probes++, at = (at + 1) & t->by_text.mask) {
        size_t other_size;
        const uint8_t *other;
        token = t->by_text.slots[at];
        if (token == JMB_NO_TOKEN) break;
        other = jmb_token_data(t, token, &other_size);
        if (other_size == size && (t->token_flags[token] & flags) && memcmp(other, text, size) == 0) break;
    }
    if (slot) *slot = probes < JMB_MAX_PROBES ? at : JMB_NO_TOKEN;
    return probes < JMB_MAX_PROBES ? token : JMB_NO_TOKEN;
}

/* The same for merges: its number. */
static uint32_t jmb_find_merge(const jmb_tokenizer *t, uint32_t left, uint32_t right, uint32_t *slot)
{
    uint32_t at = jmb_hash_pair(left, right) & t->by_pair.mask, probes, merge = JMB_NO_TOKEN;
    for (probes = 0; probes < JMB_MAX_PROBES; probes++, at = (at + 1) & t->by_pair.mask) {
        merge = t->by_pair.slots[at];
        if (merge == JMB_NO_TOKEN || (t->merge[merge].left == left && t->merge[merge].right == right)) break;
    }
    if (slot) *slot = probes < JMB_MAX_PROBES ? at : JMB_NO_TOKEN;
    return probes < JMB_MAX_PROBES ? merge : JMB_NO_TOKEN;
}

/* The token of the model's vocabulary with this text. */
static uint32_t jmb_model_token(const jmb_tokenizer *t, const uint8_t *text, size_t size)
{
    return jmb_find_text(t, text, size, JMB_TOKEN_MODEL, NULL);
}

static int jmb_hex_digit(uint8_t c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c = (uint8_t)(c | 32);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte that a token <0x41> stands for; -1 for other text. */
static int jmb_byte_of(const uint8_t *text, size_t size)
{
    int high, low;
    if (size != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    high = jmb_hex_digit(text[3]);
    low = jmb_hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* ---- growing scratch memory ---------------------------------------------------------------- */

typedef struct jmb_room {
    uint8_t *data;
    size_t size, capacity; /* bytes */
} jmb_room;

static void jmb_room_free(jmb_room *room, const jamba_allocator *allocator)
{
    if (room->data) allocator->free(allocator->user, room->data, room->capacity);
    room->data = NULL;
    room->size = room->capacity = 0;
}

/* Room for `count` more items of `size` bytes behind what is there; NULL when there is no memory. */
static void *jmb_room_add(jmb_room *room, const jamba_allocator *allocator, uint64_t count, uint64_t size)
{
    uint64_t bytes = jmb_mul(count, size), need = jmb_add(room->size, bytes);
    void *added;
    if (need > room->capacity || !room->data) {
        uint64_t doubled = room->size > 0 ? jmb_mul(room->capacity, 2) : 0;
        uint64_t capacity = jmb_round_up(jmb_add(need > doubled ? need : doubled, 1), 256);
        jmb_room grown = { NULL, room->size, (size_t)capacity };
        if (capacity > SIZE_MAX / 2) return NULL;
        if (room->size == 0) jmb_room_free(room, allocator);
        grown.data = (uint8_t *)allocator->alloc(allocator->user, grown.capacity, JMB_ALIGN);
        if (!grown.data) return NULL;
        if (room->size > 0) memcpy(grown.data, room->data, room->size);
        jmb_room_free(room, allocator);
        *room = grown;
    }
    added = room->data + room->size;
    room->size += (size_t)bytes;
    return added;
}

/* The same after forgetting what is there. */
static void *jmb_room_take(jmb_room *room, const jamba_allocator *allocator, uint64_t count, uint64_t size)
{
    room->size = 0;
    return jmb_room_add(room, allocator, count, size);
}

/* ---- rules --------------------------------------------------------------------------------- */

typedef struct jmb_encoder {
    const jmb_tokenizer *t;
    const jamba_allocator *allocator;
    jmb_room raw;              /* units of the whole text */
    jmb_room normal[2];        /* units of one stretch, read and written by turns */
    jmb_room composed;         /* characters in NFC */
    jmb_room words;            /* units after rule SPACE */
    jmb_room symbols, queue;   /* of one word */
    jmb_room tokens;           /* the result */
} jmb_encoder;

static void jmb_encoder_free(jmb_encoder *e)
{
    jmb_room_free(&e->raw, e->allocator);
    jmb_room_free(&e->normal[0], e->allocator);
    jmb_room_free(&e->normal[1], e->allocator);
    jmb_room_free(&e->composed, e->allocator);
    jmb_room_free(&e->words, e->allocator);
    jmb_room_free(&e->symbols, e->allocator);
    jmb_room_free(&e->queue, e->allocator);
    jmb_room_free(&e->tokens, e->allocator);
}

static jmb_unit *jmb_put_units(jmb_unit *out, const void *text, size_t size, unsigned special)
{
    size_t i;
    for (i = 0; i < size; i++) out[i] = (jmb_unit)(((const uint8_t *)text)[i] | special);
    return out + size;
}

static bool jmb_matches(const jmb_unit *p, size_t left, const uint8_t *text, size_t size)
{
    size_t i;
    if (left < size) return false;
    for (i = 0; i < size; i++)
        if ((uint8_t)p[i] != text[i]) return false;
    return true;
}

/* JMB_UNIT_SPECIAL when all of these units are, else 0. */
static unsigned jmb_all_special(const jmb_unit *p, size_t size)
{
    unsigned special = JMB_UNIT_SPECIAL;
    while (size-- > 0) special &= *p++;
    return special;
}

/* Writes the result to `out`, or only measures it when that is NULL. */
static size_t jmb_replace(const jmb_rule *rule, const jmb_unit *text, size_t size, jmb_unit *out)
{
    size_t at = 0, length = 0;
    while (at < size) {
        const jmb_unit *p = text + at;
        bool match = jmb_matches(p, size - at, rule->from, rule->from_size);
        if (out && match) jmb_put_units(out + length, rule->to, rule->to_size, jmb_all_special(p, rule->from_size));
        if (out && !match) out[length] = *p;
        length += match ? rule->to_size : 1;
        at += match ? rule->from_size : 1;
    }
    return length;
}

/* A text that is not empty with `from` replaced, and with `to` in front when `prefix` is set, in `room`. A
 * rule PREPEND has no `from`. NULL when there is no memory. */
static jmb_unit *jmb_apply(
    jmb_encoder *e, jmb_room *room, const jmb_rule *rule, bool prefix, const jmb_unit *text, size_t *size)
{
    bool replace = rule->from_size > 0;
    size_t front = prefix ? rule->to_size : 0, length = replace ? jmb_replace(rule, text, *size, NULL) : *size;
    jmb_unit *out = (jmb_unit *)jmb_room_take(room, e->allocator, jmb_add(front, length), sizeof *out);
    if (!out) return NULL;
    jmb_put_units(out, rule->to, front, text[0] & JMB_UNIT_SPECIAL);
    if (replace) jmb_replace(rule, text, *size, out + front);
    else memcpy(out + front, text, length * sizeof *out);
    *size = front + length;
    return out;
}

/* A character in NFC: code point, combining class << JMB_NFC_CLASS, JMB_NFC_SPECIAL when its units are. */
typedef uint32_t jmb_nfc_char;
#define JMB_NFC_CODE 0x1fffffu
#define JMB_NFC_CLASS 21
#define JMB_NFC_SPECIAL 0x20000000u

static uint32_t jmb_nfc_class(jmb_nfc_char c)
{
    return c >> JMB_NFC_CLASS & 255;
}

/* Writes decomposed characters to `out`, or only counts them when that is NULL. */
static size_t jmb_nfc_decompose(const jmb_unit *text, size_t size, jmb_nfc_char *out)
{
    size_t at, count = 0;
    for (at = 0; at < size; at += jmb_char_size(text[at])) {
        uint32_t parts[JMB_NFC_PARTS], special = text[at] >= JMB_UNIT_SPECIAL ? JMB_NFC_SPECIAL : 0;
        size_t i, length = jmb_decompose(jmb_char_at(text + at), parts);
        for (i = 0; i < length && out; i++)
            out[count + i] = parts[i] | jmb_combining_class(parts[i]) << JMB_NFC_CLASS | special;
        count += length;
    }
    return count;
}

/* Sorts marks by class and keeps the order within one. Counting, since a text may be all marks. */
static void jmb_nfc_sort(jmb_nfc_char *marks, size_t count, jmb_nfc_char *scratch)
{
    size_t ends[256] = { 0 }, i, end = 0;
    for (i = 0; i < count; i++) ends[jmb_nfc_class(marks[i])]++;
    for (i = 0; i < 256; i++) ends[i] = end += ends[i];
    memcpy(scratch, marks, count * sizeof *marks);
    for (i = count; i-- > 0;) marks[--ends[jmb_nfc_class(scratch[i])]] = scratch[i];
}

static void jmb_nfc_order(jmb_nfc_char *text, size_t count, jmb_nfc_char *scratch)
{
    size_t i, start = 0; /* of the marks in a row that end at i */
    bool sorted = true;
    for (i = 0; i <= count; i++) {
        if (i < count && jmb_nfc_class(text[i]) > 0) {
            if (i > start) sorted = sorted && jmb_nfc_class(text[i - 1]) <= jmb_nfc_class(text[i]);
            continue;
        }
        if (!sorted) jmb_nfc_sort(text + start, i - start, scratch);
        sorted = true;
        start = i + 1;
    }
}

/* Composes in place and returns how many characters are left. A character composes with the last one of
 * class 0 unless a mark of no lower class stands between. */
static size_t jmb_nfc_compose(jmb_nfc_char *text, size_t count)
{
    size_t i, used = 0, starter = 0;
    bool begun = false;
    for (i = 0; i < count; i++) {
        jmb_nfc_char c = text[i], joined = 0;
        bool next = begun && used == starter + 1;
        if (next || (begun && jmb_nfc_class(text[used - 1]) < jmb_nfc_class(c)))
            joined = jmb_compose(text[starter] & JMB_NFC_CODE, c & JMB_NFC_CODE);
        if (joined) {
            text[starter] = joined | (text[starter] & c & JMB_NFC_SPECIAL);
            continue;
        }
        if (jmb_nfc_class(c) == 0) starter = used;
        begun = begun || jmb_nfc_class(c) == 0;
        text[used++] = c;
    }
    return used;
}

/* Writes the character as units and returns how many. */
static size_t jmb_nfc_put(jmb_nfc_char c, jmb_unit *out)
{
    static const uint8_t leads[5] = { 0, 0, 0xc0, 0xe0, 0xf0 };
    uint32_t code = c & JMB_NFC_CODE;
    unsigned special = c & JMB_NFC_SPECIAL ? (unsigned)JMB_UNIT_SPECIAL : 0u;
    size_t i, size = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (i = size; i-- > 1; code >>= 6) out[i] = (jmb_unit)(0x80u | (code & 0x3f) | special);
    out[0] = (jmb_unit)(leads[size] | code | special);
    return size;
}

/* Canonical composition. NULL when there is no memory. */
static const jmb_unit *jmb_nfc(jmb_encoder *e, jmb_room *room, const jmb_unit *text, size_t *size)
{
    size_t i = 0, count;
    jmb_nfc_char *chars;
    jmb_unit *out;
    while (i < *size && (uint8_t)text[i] < 0xcc) i++; /* text below JMB_FIRST_MARK is in NFC */
    if (i == *size) return text;
    count = jmb_nfc_decompose(text, *size, NULL);
    chars = (jmb_nfc_char *)jmb_room_take(&e->composed, e->allocator, jmb_mul(count, 2), sizeof *chars);
    if (!chars) return NULL;
    jmb_nfc_decompose(text, *size, chars);
    jmb_nfc_order(chars, count, chars + count);
    count = jmb_nfc_compose(chars, count);
    out = (jmb_unit *)jmb_room_take(room, e->allocator, jmb_mul(count, 4), sizeof *out);
    if (!out) return NULL;
    for (i = *size = 0; i < count; i++) *size += jmb_nfc_put(chars[i], out + *size);
    return out;
}

/* Runs the normaliser; NULL when there is no memory. */
static const jmb_unit *jmb_normalise(jmb_encoder *e, const jmb_unit *text, size_t *size)
{
    uint32_t i;
    for (i = 0; i < e->t->normaliser_count && *size > 0 && text; i++) {
        const jmb_rule *rule = &e->t->normaliser[i];
        jmb_room *room = &e->normal[(const uint8_t *)text == e->normal[0].data ? 1 : 0]; /* where it is not */
        if (rule->kind == JMB_RULE_NFC) text = jmb_nfc(e, room, text, size);
        else text = jmb_apply(e, room, rule, rule->kind == JMB_RULE_PREPEND, text, size);
    }
    return text;
}

/* ---- added tokens -------------------------------------------------------------------------- */

/* Walks over a text from one added token to the next. */
typedef struct jmb_splitter {
    const jmb_tokenizer *t;
    const jmb_trie *trie;
    const jmb_unit *text;
    size_t size;
    size_t scan;      /* where the next match may begin */
    size_t done;      /* end of the last token, white space included */
    size_t space_end; /* of the last white space looked at */
} jmb_splitter;

static uint32_t jmb_trie_child(const jmb_trie *trie, uint32_t node, uint8_t byte)
{
    if (node == 0) return trie->first[byte];
    for (node = trie->nodes[node].child; node != 0 && trie->nodes[node].byte != byte;) node = trie->nodes[node].sibling;
    return node;
}

/* The longest added token at `at`; its size, 0 when there is none. Special tokens lie in special text as a
 * whole, or count as text: then *token is JMB_NO_TOKEN, and nothing else matches inside. */
static size_t jmb_longest_added(const jmb_splitter *s, size_t at, uint32_t *token)
{
    size_t i, best = 0, special = 0;
    uint32_t node = 0;
    for (i = at; i < s->size; i++) {
        uint32_t found;
        node = jmb_trie_child(s->trie, node, (uint8_t)s->text[i]);
        if (node == 0) break;
        special += s->text[i] >= JMB_UNIT_SPECIAL;
        found = s->trie->nodes[node].token;
        if (found == JMB_NO_TOKEN) continue;
        if ((s->t->token_flags[found] & JMB_TOKEN_SPECIAL) && special != i + 1 - at) {
            if (special != 0) continue;
            found = JMB_NO_TOKEN;
        }
        best = i + 1 - at;
        *token = found;
    }
    return best;
}

static bool jmb_inside_word(const jmb_splitter *s, size_t start, size_t stop)
{
    if (start > 0 && jmb_is_word(jmb_char_at(s->text + jmb_char_before(s->text, start)))) return true;
    return stop < s->size && jmb_is_word(jmb_char_at(s->text + stop));
}

static size_t jmb_strip_left(const jmb_splitter *s, size_t start)
{
    while (start > s->done) {
        size_t before = jmb_char_before(s->text, start);
        if (!jmb_is_space(jmb_char_at(s->text + before))) break;
        start = before;
    }
    return start > s->done ? start : s->done;
}

static size_t jmb_strip_right(jmb_splitter *s, size_t stop)
{
    if (stop < s->space_end) return s->space_end;
    while (stop < s->size && jmb_is_space(jmb_char_at(s->text + stop))) stop += jmb_char_size(s->text[stop]);
    return s->space_end = stop;
}

/* The next added token and where it lies; JMB_NO_TOKEN and the end of the text when there is none. A token
 * that consists of white space may lie in what the last one took along: then *start >= *stop. */
static uint32_t jmb_next_added(jmb_splitter *s, size_t *start, size_t *stop)
{
    while (s->trie->nodes && s->scan < s->size) {
        uint32_t token = JMB_NO_TOKEN, flags;
        size_t at = s->scan, size = s->trie->first[s->text[at] & 0xff] ? jmb_longest_added(s, at, &token) : 0;
        s->scan += size > 0 ? size : 1;
        if (token == JMB_NO_TOKEN) continue;
        flags = s->t->token_flags[token];
        *start = at;
        *stop = at + size;
        if ((flags & JMB_TOKEN_WORD) && jmb_inside_word(s, *start, *stop)) continue;
        if (flags & JMB_TOKEN_LSTRIP) *start = jmb_strip_left(s, *start);
        if (flags & JMB_TOKEN_RSTRIP) *stop = jmb_strip_right(s, *stop);
        return token;
    }
    *start = *stop = s->size;
    return JMB_NO_TOKEN;
}

/* Text without added tokens, which may be empty, and the token behind it, if one is to be put there. */
typedef struct jmb_stretch {
    const jmb_unit *text;
    size_t size;
    uint32_t token;
    bool last;
} jmb_stretch;

static jmb_stretch jmb_next_stretch(jmb_splitter *s)
{
    jmb_stretch part;
    size_t start, stop;
    uint32_t token = jmb_next_added(s, &start, &stop);
    part.text = s->text + s->done;
    part.size = start > s->done ? start - s->done : 0;
    part.token = start < stop ? token : JMB_NO_TOKEN;
    part.last = token == JMB_NO_TOKEN;
    s->done = stop;
    return part;
}

/* ---- merging ------------------------------------------------------------------------------- */

#define JMB_END 0xffffffffu

/* A word is a linked list of symbols in an array. */
typedef struct jmb_symbol {
    uint32_t token, prev, next; /* token JMB_NO_TOKEN: merged into its left neighbour */
} jmb_symbol;

/* A binary heap of rank << 32 | position: the best pair, leftmost at equal rank, is on top. */
typedef struct jmb_queue {
    uint64_t *items;
    size_t count;
} jmb_queue;

static void jmb_queue_push(jmb_queue *q, uint64_t item)
{
    size_t at = q->count++;
    while (at > 0 && q->items[(at - 1) / 2] > item) {
        q->items[at] = q->items[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    q->items[at] = item;
}

static uint64_t jmb_queue_pop(jmb_queue *q)
{
    uint64_t top = q->items[0], last = q->items[--q->count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= q->count) break;
        if (child + 1 < q->count && q->items[child + 1] < q->items[child]) child++;
        if (q->items[child] >= last) break;
        q->items[at] = q->items[child];
        at = child;
    }
    q->items[at] = last;
    return top;
}

static void jmb_add_symbol(jmb_symbol *symbols, uint32_t *count, uint32_t token)
{
    jmb_symbol *symbol = &symbols[*count];
    symbol->token = token;
    symbol->prev = *count - 1;
    symbol->next = ++*count;
}

/* The byte tokens of one character; false unless all exist. */
static bool jmb_add_bytes(
    const jmb_tokenizer *t, const uint8_t *text, size_t size, jmb_symbol *symbols, uint32_t *count)
{
    size_t i;
    if (!(t->flags & JMB_TEXT_BYTES)) return false;
    for (i = 0; i < size; i++)
        if (t->bytes[text[i]] == JMB_NO_TOKEN) return false;
    for (i = 0; i < size; i++) jmb_add_symbol(symbols, count, t->bytes[text[i]]);
    return true;
}

/* Characters of a word, or its bytes, as symbols; returns how many, at most one a byte. As in the reference,
 * an unk waits until the next known character, so that byte tokens in between come before it. */
static uint32_t jmb_first_symbols(const jmb_tokenizer *t, const jmb_unit *text, size_t size, jmb_symbol *symbols)
{
    uint32_t count = 0;
    bool waiting = false;
    size_t at = 0, i;
    while (at < size) {
        uint8_t c[4];
        size_t length = t->flags & JMB_TEXT_RAW ? 1 : jmb_char_size(text[at]);
        uint32_t token;
        for (i = 0; i < length; i++) c[i] = (uint8_t)text[at + i];
        at += length;
        token = jmb_model_token(t, c, length);
        if (token == JMB_NO_TOKEN) {
            if (jmb_add_bytes(t, c, length, symbols, &count) || t->unk == JMB_NO_TOKEN) continue;
            if (waiting && !(t->flags & JMB_TEXT_FUSE_UNK)) jmb_add_symbol(symbols, &count, t->unk);
            waiting = true;
            continue;
        }
        if (waiting) jmb_add_symbol(symbols, &count, t->unk);
        waiting = false;
        jmb_add_symbol(symbols, &count, token);
    }
    if (waiting) jmb_add_symbol(symbols, &count, t->unk);
    if (count > 0) symbols[count - 1].next = JMB_END;
    return count;
}

/* Queues the pair that begins at symbol `at`, if it can be merged. */
static void jmb_queue_pair(const jmb_tokenizer *t, jmb_queue *q, const jmb_symbol *symbols, uint32_t at)
{
    uint32_t merge;
    if (at == JMB_END || symbols[at].next == JMB_END) return;
    merge = jmb_find_merge(t, symbols[at].token, symbols[symbols[at].next].token, NULL);
    if (merge != JMB_NO_TOKEN) jmb_queue_push(q, (uint64_t)t->merge[merge].rank << 32 | at);
}

/* Merges the pair at symbol `at`, if it still has the rank, or the result, that it was queued with. */
static void jmb_merge_pair(const jmb_tokenizer *t, jmb_queue *q, jmb_symbol *symbols, uint32_t at, uint32_t rank)
{
    jmb_symbol *left = &symbols[at], *right;
    const jmb_merge *merge;
    uint32_t number;
    if (left->token == JMB_NO_TOKEN || left->next == JMB_END) return;
    right = &symbols[left->next];
    number = jmb_find_merge(t, left->token, right->token, NULL);
    if (number == JMB_NO_TOKEN) return;
    merge = &t->merge[number];
    if (merge->rank != rank && merge->result != t->merge[rank].result) return;
    left->token = merge->result;
    left->next = right->next;
    right->token = JMB_NO_TOKEN;
    if (left->next != JMB_END) symbols[left->next].prev = at;
    jmb_queue_pair(t, q, symbols, left->prev);
    jmb_queue_pair(t, q, symbols, at);
}

static bool jmb_put_token(jmb_encoder *e, uint32_t token)
{
    int32_t *out = (int32_t *)jmb_room_add(&e->tokens, e->allocator, 1, sizeof *out);
    if (out) *out = (int32_t)token;
    return out != NULL;
}

/* One word. False when there is no memory. */
static bool jmb_encode_word(jmb_encoder *e, const jmb_unit *text, size_t size)
{
    jmb_symbol *symbols;
    jmb_queue q = { NULL, 0 };
    uint32_t count, i;
    if (size == 0) return true;
    if (size >= JMB_END) return false;
    symbols = (jmb_symbol *)jmb_room_take(&e->symbols, e->allocator, size, sizeof *symbols);
    if (!symbols) return false;
    count = jmb_first_symbols(e->t, text, size, symbols);
    if (count == 0) return true;
    /* every merge takes one entry off and adds at most two, and there are fewer merges than symbols */
    q.items = (uint64_t *)jmb_room_take(&e->queue, e->allocator, 2 * (uint64_t)count, sizeof *q.items);
    if (!q.items) return false;
    for (i = 0; i + 1 < count; i++) jmb_queue_pair(e->t, &q, symbols, i);
    while (q.count > 0) {
        uint64_t best = jmb_queue_pop(&q);
        jmb_merge_pair(e->t, &q, symbols, (uint32_t)best, (uint32_t)(best >> 32));
    }
    for (i = 0; i != JMB_END; i = symbols[i].next)
        if (!jmb_put_token(e, symbols[i].token)) return false;
    return true;
}

/* ---- encoding ------------------------------------------------------------------------------ */

/* Size of the contraction at p, of which `left` units are there; 0 when it begins none. */
static size_t jmb_contraction(const jmb_unit *p, size_t left)
{
    static const char *const endings[] = { "s", "t", "re", "ve", "m", "ll", "d" };
    size_t i;
    for (i = 0; i < JMB_COUNT(endings) && left > 0 && (uint8_t)p[0] == '\''; i++) {
        size_t size = strlen(endings[i]);
        if (jmb_matches(p + 1, left - 1, (const uint8_t *)endings[i], size)) return 1 + size;
    }
    return 0;
}

/* What runs of one kind consist of in GPT-2's words. */
static jmb_char_class jmb_gpt2_class(const jmb_unit *p)
{
    jmb_char_class kind = jmb_class_of(jmb_char_at(p));
    return kind == JMB_CHAR_DIGIT ? JMB_CHAR_NUMBER : kind == JMB_CHAR_MARK ? JMB_CHAR_OTHER : kind;
}

/* End of the characters of one class from `at`; *last is where the last of them begins. */
static size_t jmb_run_end(const jmb_unit *text, size_t size, size_t at, size_t *last)
{
    jmb_char_class kind = jmb_gpt2_class(text + at);
    do {
        *last = at;
        at += jmb_char_size(text[at]);
    } while (at < size && jmb_gpt2_class(text + at) == kind);
    return at;
}

/* End of the word at `at` by the rules of GPT-2: a contraction; letters, numbers or others, a blank in front
 * included; white space, but for the last character when a word follows. */
static size_t jmb_gpt2_end(const jmb_unit *text, size_t size, size_t at)
{
    size_t contraction = jmb_contraction(text + at, size - at), last, end;
    size_t word = at + ((uint8_t)text[at] == ' ' && at + 1 < size ? 1 : 0);
    if (contraction > 0) return at + contraction;
    if (jmb_gpt2_class(text + word) != JMB_CHAR_SPACE) return jmb_run_end(text, size, word, &last);
    end = jmb_run_end(text, size, at, &last);
    return end == size || last == at ? end : last;
}

/* End of the word at `at` < size. */
static size_t jmb_word_end(const jmb_tokenizer *t, const jmb_unit *text, size_t size, size_t at)
{
    const jmb_rule *space = &t->space;
    if (t->flags & JMB_TEXT_GPT2) return jmb_gpt2_end(text, size, at);
    if (!(t->flags & JMB_TEXT_SPLIT)) return size;
    while (++at < size && !jmb_matches(text + at, size - at, space->to, space->to_size)) {}
    return at;
}

/* Normalised text without added tokens. `first`: it begins the whole text. */
static bool jmb_encode_words(jmb_encoder *e, const jmb_unit *text, size_t size, bool first)
{
    const jmb_rule *space = &e->t->space;
    bool prefix = (e->t->flags & JMB_TEXT_PREFIX_ALWAYS) || (first && (e->t->flags & JMB_TEXT_PREFIX_FIRST));
    size_t at = 0;
    if (size > 0 && space->kind) {
        prefix = prefix && (uint8_t)text[0] != ' ' && !jmb_matches(text, size, space->to, space->to_size);
        text = jmb_apply(e, &e->words, space, prefix, text, &size);
        if (!text) return false;
    }
    while (at < size) {
        size_t end = jmb_word_end(e->t, text, size, at);
        if (!jmb_encode_word(e, text + at, end - at)) return false;
        at = end;
    }
    return true;
}

/* Cuts the added tokens out that match in normalised text. */
static bool jmb_encode_normalised(jmb_encoder *e, const jmb_unit *text, size_t size, bool first)
{
    jmb_splitter s = { e->t, &e->t->normalised, text, size, 0, 0, 0 };
    jmb_stretch part;
    do {
        part = jmb_next_stretch(&s);
        if (part.size > 0 && !jmb_encode_words(e, part.text, part.size, first && part.text == text)) return false;
        if (part.token != JMB_NO_TOKEN && !jmb_put_token(e, part.token)) return false;
    } while (!part.last);
    return true;
}

/* The same for those that match as written. */
static bool jmb_encode_raw(jmb_encoder *e, const jmb_unit *text, size_t size, bool first)
{
    jmb_splitter s = { e->t, &e->t->raw, text, size, 0, 0, 0 };
    jmb_stretch part;
    do {
        part = jmb_next_stretch(&s);
        if (part.size > 0) {
            const jmb_unit *normal = jmb_normalise(e, part.text, &part.size);
            if (!normal || !jmb_encode_normalised(e, normal, part.size, first && part.text == text)) return false;
        }
        if (part.token != JMB_NO_TOKEN && !jmb_put_token(e, part.token)) return false;
    } while (!part.last);
    return true;
}

/* Part of one text. */
typedef struct jmb_piece {
    const char *text;
    size_t length;
    bool special; /* special tokens match in it */
} jmb_piece;

static jamba_result jmb_check_pieces(const jmb_piece *pieces, size_t count, size_t *total, jamba_error *error)
{
    uint64_t size = 0;
    size_t i;
    for (i = 0; i < count; i++) {
        const jmb_piece *piece = &pieces[i];
        size_t valid;
        if (!piece->text && piece->length > 0) return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "text is NULL");
        if (jmb_add(size, piece->length) > JMB_MAX_TEXT)
            return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "the text is longer than %u bytes", (unsigned)JMB_MAX_TEXT);
        valid = jmb_utf8_prefix((const uint8_t *)piece->text, piece->length);
        if (valid < piece->length)
            return jmb_fail(error, JAMBA_ERR_TEXT, size + valid, "not valid UTF-8 at byte %l", size + valid);
        size += piece->length;
    }
    *total = (size_t)size;
    return JAMBA_OK;
}

static bool jmb_encode_pieces(
    jmb_encoder *e, const jmb_piece *pieces, size_t count, size_t total, int32_t first_token, bool begins)
{
    jmb_unit *text, *out;
    size_t i;
    if (first_token >= 0 && !jmb_put_token(e, (uint32_t)first_token)) return false;
    if (total == 0) return true;
    text = out = (jmb_unit *)jmb_room_take(&e->raw, e->allocator, total, sizeof *text);
    if (!text) return false;
    for (i = 0; i < count; i++)
        out = jmb_put_units(out, pieces[i].text, pieces[i].length, pieces[i].special ? (unsigned)JMB_UNIT_SPECIAL : 0u);
    return jmb_encode_raw(e, text, total, begins);
}

/* Hands out `size` items of `item` bytes under the rule for *count and capacity in the API. */
static jamba_result jmb_hand_out(
    const char *what, size_t size, size_t capacity, size_t *count, jamba_error *error)
{
    *count = size;
    if (size <= capacity || capacity == 0) return JAMBA_OK;
    return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "%z %s do not fit in %z", size, what, capacity);
}

/* Tokens of consecutive pieces of one text. `begins` is false when text stands before it. */
static jamba_result jmb_encode_text(const jmb_tokenizer *t, const jamba_allocator *allocator, const jmb_piece *pieces,
    size_t piece_count, int32_t first_token, bool begins, int32_t *tokens, size_t capacity, size_t *count,
    jamba_error *error)
{
    jmb_encoder e;
    jamba_result result;
    size_t total = 0;
    *count = 0;
    if (t->tokens == 0) return jmb_fail(error, JAMBA_ERR_TEXT, 0, "the model has no tokenizer");
    JMB_TRY(jmb_check_pieces(pieces, piece_count, &total, error));
    memset(&e, 0, sizeof e);
    e.t = t;
    e.allocator = allocator;
    if (jmb_encode_pieces(&e, pieces, piece_count, total, first_token, begins)) {
        size_t size = e.tokens.size / sizeof *tokens;
        result = jmb_hand_out("tokens", size, capacity, count, error);
        if (tokens && size > 0 && size <= capacity) memcpy(tokens, e.tokens.data, e.tokens.size);
    } else {
        result = jmb_no_memory(error);
    }
    jmb_encoder_free(&e);
    return result;
}

/* The same for text that stands alone. first_token >= 0 is put in front. */
static jamba_result jmb_encode(const jmb_tokenizer *t, const jamba_allocator *allocator, const jmb_piece *pieces,
    size_t piece_count, int32_t first_token, int32_t *tokens, size_t capacity, size_t *count, jamba_error *error)
{
    return jmb_encode_text(t, allocator, pieces, piece_count, first_token, true, tokens, capacity, count, error);
}

/* ---- decoding ------------------------------------------------------------------------------ */

/* Collects decoded text, or only measures it when `text` is NULL. */
typedef struct jmb_text_sink {
    char *text;
    size_t size;
    uint32_t strip; /* spaces still to be taken off the front */
    bool begun;
} jmb_text_sink;

static void jmb_sink_add(jmb_text_sink *sink, const void *text, size_t size)
{
    const char *p = (const char *)text;
    for (; sink->strip > 0 && size > 0; p++, size--) {
        if (*p != ' ') sink->strip = 0;
        else sink->strip--;
        if (*p != ' ') break;
    }
    if (sink->text && size > 0) memcpy(sink->text + sink->size, p, size);
    sink->size += size;
}

static void jmb_sink_bad_bytes(jmb_text_sink *sink, size_t count)
{
    while (count-- > 0) jmb_sink_add(sink, "\xef\xbf\xbd", 3);
}

/* What an added token stands for in decoded text: as it looks in normalised text. */
static const uint8_t *jmb_token_pattern(const jmb_tokenizer *t, uint32_t token, size_t *size)
{
    uint32_t low = 0, high = t->pattern_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const jmb_pattern *pattern = &t->patterns[middle];
        if (pattern->token == token) {
            *size = pattern->size;
            return t->pattern_text + pattern->offset;
        }
        if (pattern->token < token) low = middle + 1;
        else high = middle;
    }
    return jmb_token_data(t, token, size);
}

static void jmb_sink_token(jmb_text_sink *sink, const jmb_tokenizer *t, uint32_t token)
{
    const jmb_rule *rule = &t->decode;
    size_t at, size, to_size = (t->flags & JMB_TEXT_DROP_FIRST) && !sink->begun ? 0 : rule->to_size;
    const uint8_t *text = jmb_token_pattern(t, token, &size);
    size_t from = 0;
    for (at = 0; at < size && rule->kind;) {
        if (size - at < rule->from_size || memcmp(text + at, rule->from, rule->from_size) != 0) {
            at++;
            continue;
        }
        jmb_sink_add(sink, text + from, at - from);
        jmb_sink_add(sink, rule->to, to_size);
        from = at += rule->from_size;
    }
    jmb_sink_add(sink, text + from, size - from);
}

/* Whether decoding passes over the token. */
static bool jmb_is_silent(const jmb_tokenizer *t, uint32_t token, unsigned flags)
{
    if (token >= t->tokens) return true;
    return (t->token_flags[token] & JMB_TOKEN_SPECIAL) && !(flags & JAMBA_TEXT_SPECIAL);
}

/* The byte that the token decodes to; -1 when it decodes to its text. */
static int jmb_decoded_byte(const jmb_tokenizer *t, uint32_t token)
{
    size_t size;
    const uint8_t *text = jmb_token_data(t, token, &size);
    return t->flags & JMB_TEXT_DECODE_BYTES ? jmb_byte_of(text, size) : -1;
}

typedef struct jmb_decoder {
    const jmb_tokenizer *t;
    const int32_t *tokens;
    size_t count;
    unsigned flags;
} jmb_decoder;

/* Takes a byte into the unfinished character `held`: 1 when that completes it, 0 when more must come, -1
 * when they cannot become a character. */
static int jmb_hold_byte(uint8_t held[4], int32_t *held_count, int byte)
{
    int size;
    held[(*held_count)++] = (uint8_t)byte;
    size = jmb_utf8(held, (size_t)*held_count);
    return size > 0 ? 1 : size;
}

/* The run of byte tokens at `at`: returns its end, and whether all of it is valid UTF-8. */
static size_t jmb_scan_bytes(const jmb_decoder *d, size_t at, bool *valid)
{
    uint8_t held[4];
    int32_t held_count = 0;
    *valid = true;
    for (; at < d->count; at++) {
        uint32_t token = (uint32_t)d->tokens[at];
        int byte;
        if (jmb_is_silent(d->t, token, d->flags)) continue;
        byte = jmb_decoded_byte(d->t, token);
        if (byte < 0) break;
        if (!*valid) continue;
        switch (jmb_hold_byte(held, &held_count, byte)) {
        case 1: held_count = 0; break;
        case -1: *valid = false; break;
        default: break;
        }
    }
    if (held_count > 0) *valid = false;
    return at;
}

/* As the reference: a run of bytes is text as a whole or one U+FFFD for each byte. */
static void jmb_sink_bytes(jmb_text_sink *sink, const jmb_decoder *d, size_t at, size_t end, bool valid)
{
    for (; at < end; at++) {
        uint8_t byte;
        if (jmb_is_silent(d->t, (uint32_t)d->tokens[at], d->flags)) continue;
        byte = (uint8_t)jmb_decoded_byte(d->t, (uint32_t)d->tokens[at]);
        if (valid) jmb_sink_add(sink, &byte, 1);
        else jmb_sink_bad_bytes(sink, 1);
    }
}

static void jmb_stream_flush(jmb_text_sink *sink, const jmb_tokenizer *t, jamba_text_stream *stream)
{
    bool joined = (t->flags & JMB_TEXT_RAW) && stream->held_count > 0;
    jmb_sink_bad_bytes(sink, joined ? 1 : (size_t)stream->held_count);
    stream->held_count = 0;
}

static void jmb_stream_byte(jmb_text_sink *sink, const jmb_tokenizer *t, jamba_text_stream *stream, int byte)
{
    int state = jmb_hold_byte(stream->held, &stream->held_count, byte);
    if (state < 0 && stream->held_count > 1) { /* what was held is broken off here, the byte may begin anew */
        stream->held_count--;
        jmb_stream_flush(sink, t, stream);
        state = jmb_hold_byte(stream->held, &stream->held_count, byte);
    }
    if (state < 0) jmb_stream_flush(sink, t, stream);
    if (state > 0) {
        jmb_sink_add(sink, stream->held, (size_t)stream->held_count);
        stream->held_count = 0;
    }
}

/* A token of JMB_TEXT_RAW. */
static void jmb_stream_raw(jmb_text_sink *sink, const jmb_tokenizer *t, jamba_text_stream *stream, uint32_t token)
{
    size_t i, size;
    const uint8_t *text = jmb_token_pattern(t, token, &size);
    for (i = 0; i < size; i++) jmb_stream_byte(sink, t, stream, text[i]);
}

/* As the reference: bytes that begin a character and do not end it become one U+FFFD. */
static void jmb_sink_raw(jmb_text_sink *sink, const jmb_decoder *d)
{
    jamba_text_stream stream;
    size_t i;
    memset(&stream, 0, sizeof stream);
    for (i = 0; i < d->count; i++)
        if (!jmb_is_silent(d->t, (uint32_t)d->tokens[i], d->flags))
            jmb_stream_raw(sink, d->t, &stream, (uint32_t)d->tokens[i]);
    jmb_stream_flush(sink, d->t, &stream);
}

static void jmb_sink_tokens(jmb_text_sink *sink, const jmb_decoder *d)
{
    size_t at = 0;
    if (d->t->flags & JMB_TEXT_RAW) {
        jmb_sink_raw(sink, d);
        return;
    }
    while (at < d->count) {
        uint32_t token = (uint32_t)d->tokens[at];
        bool valid;
        size_t end;
        if (jmb_is_silent(d->t, token, d->flags)) {
            at++;
            continue;
        }
        if (jmb_decoded_byte(d->t, token) < 0) {
            jmb_sink_token(sink, d->t, token);
            end = at + 1;
        } else {
            end = jmb_scan_bytes(d, at, &valid);
            jmb_sink_bytes(sink, d, at, end, valid);
        }
        sink->begun = true;
        at = end;
    }
}

/* Text of a whole sequence. Special tokens are left out unless flags has JAMBA_TEXT_SPECIAL. */
static jamba_result jmb_decode(const jmb_tokenizer *t, const int32_t *tokens, size_t count, unsigned flags, char *text,
    size_t capacity, size_t *length, jamba_error *error)
{
    jmb_decoder d = { t, tokens, count, flags };
    jmb_text_sink sink = { NULL, 0, t->strip, false };
    size_t i;
    *length = 0;
    if (t->tokens == 0) return jmb_fail(error, JAMBA_ERR_TEXT, 0, "the model has no tokenizer");
    if (!tokens && count > 0) return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "tokens is NULL");
    for (i = 0; i < count; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= t->vocab)
            return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "token %d is outside the vocabulary (0 to %u)", tokens[i],
                t->vocab - 1);
    jmb_sink_tokens(&sink, &d);
    JMB_TRY(jmb_hand_out("bytes", sink.size, capacity, length, error));
    if (sink.size > capacity) return JAMBA_OK;
    sink.text = text;
    sink.size = 0;
    sink.strip = t->strip;
    sink.begun = false;
    jmb_sink_tokens(&sink, &d);
    return JAMBA_OK;
}

/* One token of a stream, or -1 at its end. `text` has room for JAMBA_TEXT_MAX bytes: three held ones and
 * a token, which rule DECODE or U+FFFD for its bytes make at most three times as long. stream->started
 * counts the spaces taken off the front; one more than t->strip means that the text has begun. */
static size_t jmb_decode_next(
    const jmb_tokenizer *t, jamba_text_stream *stream, int32_t token, unsigned flags, char *text)
{
    jmb_text_sink sink = { text, 0, 0, stream->started != 0 };
    int byte;
    if (t->tokens == 0 || stream->held_count < 0 || stream->held_count > 3) return 0;
    if ((uint32_t)stream->started <= t->strip) sink.strip = t->strip - (uint32_t)stream->started;
    if (token < 0) {
        jmb_stream_flush(&sink, t, stream);
        return sink.size;
    }
    if (jmb_is_silent(t, (uint32_t)token, flags)) return 0;
    byte = jmb_decoded_byte(t, (uint32_t)token);
    if (t->flags & JMB_TEXT_RAW) {
        jmb_stream_raw(&sink, t, stream, (uint32_t)token);
    } else if (byte >= 0) {
        jmb_stream_byte(&sink, t, stream, byte);
    } else {
        jmb_stream_flush(&sink, t, stream);
        jmb_sink_token(&sink, t, (uint32_t)token);
    }
    stream->started = (int32_t)(sink.strip > 0 ? t->strip - sink.strip : t->strip + 1);
    return sink.size;
}

static const char *jmb_token_bytes(const jmb_tokenizer *t, int32_t token, size_t *length)
{
    const uint8_t *text = NULL;
    *length = 0;
    if (token >= 0 && (uint32_t)token < t->tokens) text = jmb_token_data(t, (uint32_t)token, length);
    return *length > 0 ? (const char *)text : NULL;
}

/* -1 when absent. An added token comes before one of the model, as in encoding. */
static int32_t jmb_token_lookup(const jmb_tokenizer *t, const char *text, size_t length)
{
    const uint8_t *bytes = (const uint8_t *)text;
    uint32_t token;
    if (t->tokens == 0 || length == 0) return -1;
    token = jmb_find_text(t, bytes, length, JMB_TOKEN_ADDED, NULL);
    if (token == JMB_NO_TOKEN) token = jmb_model_token(t, bytes, length);
    return token == JMB_NO_TOKEN ? -1 : (int32_t)token;
}

/* ---- loading ------------------------------------------------------------------------------- */

/* The section while it is read. */
typedef struct jmb_section {
    const uint8_t *data;
    size_t size, at;
    uint64_t offset; /* of the section in the file */
    jmb_heap *heap;
    jamba_error *error;
} jmb_section;

static jamba_result jmb_bad_section(jmb_section *s, const char *what, uint32_t number)
{
    return jmb_fail(s->error, JAMBA_ERR_FORMAT, s->offset + s->at, "tokenizer: %s %u", what, number);
}

static jamba_result jmb_check_padding(jmb_section *s, size_t from, size_t to)
{
    jamba_result result = jmb_check_zero(s->data, from, to, s->error);
    if (result != JAMBA_OK && s->error) s->error->offset += s->offset;
    return result;
}

static jamba_result jmb_check_section_header(jmb_section *s, const jmb_tokenizer *t)
{
    if (t->kind != JMB_TOKENIZER_KIND)
        return jmb_fail(s->error, JAMBA_ERR_UNSUPPORTED, s->offset, "tokenizer kind %u is not supported", t->kind);
    if (t->flags & ~(uint32_t)JMB_TEXT_FLAGS)
        return jmb_fail(s->error, JAMBA_ERR_UNSUPPORTED, s->offset + 4, "tokenizer flags %u not supported", t->flags);
    JMB_TRY(jmb_check_range(s->error, "tokenizer: tokens", t->tokens, 1, t->vocab, s->offset + 8));
    JMB_TRY(jmb_check_range(s->error, "tokenizer: text size", t->text_size, 0, JMB_MAX_TOKEN_TEXT, s->offset + 12));
    JMB_TRY(jmb_check_range(s->error, "tokenizer: merges", t->merges, 0, JMB_MAX_MERGES, s->offset + 16));
    JMB_TRY(jmb_check_range(s->error, "tokenizer: rules", t->rules, 0, JMB_MAX_RULES, s->offset + 20));
    JMB_TRY(jmb_check_range(s->error, "tokenizer: strip", t->strip, 0, JMB_MAX_STRIP, s->offset + 28));
    if (t->unk == JMB_NO_TOKEN) return JAMBA_OK;
    return jmb_check_range(s->error, "tokenizer: unk", t->unk, 0, t->tokens - 1, s->offset + 24);
}

/* Copies a rule and moves behind it. */
static jamba_result jmb_read_rule(jmb_section *s, jmb_rule *rule)
{
    const uint8_t *p = s->data + s->at;
    uint64_t size;
    if (s->size - s->at < 12) return jmb_bad_section(s, "it ends inside rule of kind", 0);
    rule->kind = jmb_load_u32(p);
    rule->from_size = jmb_load_u32(p + 4);
    rule->to_size = jmb_load_u32(p + 8);
    size = jmb_round_up((uint64_t)rule->from_size + rule->to_size, 4);
    if (rule->from_size > JMB_MAX_RULE_TEXT || rule->to_size > JMB_MAX_RULE_TEXT || size > s->size - s->at - 12)
        return jmb_bad_section(s, "too much text in rule of kind", rule->kind);
    memcpy(rule->from, p + 12, rule->from_size);
    memcpy(rule->to, p + 12 + rule->from_size, rule->to_size);
    JMB_TRY(jmb_check_padding(s, s->at + 12 + rule->from_size + rule->to_size, s->at + 12 + (size_t)size));
    if (jmb_utf8_prefix(rule->from, rule->from_size) < rule->from_size
        || jmb_utf8_prefix(rule->to, rule->to_size) < rule->to_size)
        return jmb_bad_section(s, "text is not UTF-8 in rule of kind", rule->kind);
    s->at += 12 + (size_t)size;
    return JAMBA_OK;
}

static bool jmb_rule_is_sound(const jmb_rule *rule)
{
    switch (rule->kind) {
    case JMB_RULE_PREPEND: return rule->from_size == 0 && rule->to_size > 0;
    case JMB_RULE_REPLACE: return rule->from_size > 0;
    case JMB_RULE_SPACE:
        return rule->from_size == 1 && rule->from[0] == ' ' && rule->to_size > 0
            && jmb_utf8(rule->to, rule->to_size) == (int)rule->to_size;
    case JMB_RULE_DECODE: return rule->from_size > 0 && rule->to_size <= 3 * rule->from_size;
    case JMB_RULE_NFC: return rule->from_size == 0 && rule->to_size == 0;
    default: return false;
    }
}

/* Rules run in this order: normaliser, SPACE, DECODE. */
static uint32_t jmb_rule_order(const jmb_rule *rule)
{
    return rule->kind == JMB_RULE_SPACE ? 1 : rule->kind == JMB_RULE_DECODE ? 2 : 0;
}

static uint32_t jmb_rule_growth(const jmb_rule *rule)
{
    if (rule->kind == JMB_RULE_NFC) return 3;
    if (rule->from_size == 0 || rule->to_size <= rule->from_size) return 1;
    return (rule->to_size + rule->from_size - 1) / rule->from_size;
}

static jamba_result jmb_parse_rules(jmb_section *s, jmb_tokenizer *t)
{
    uint32_t i, growth = 1, last = 0;
    for (i = 0; i < t->rules; i++) {
        jmb_rule rule;
        memset(&rule, 0, sizeof rule);
        JMB_TRY(jmb_read_rule(s, &rule));
        if (!jmb_rule_is_sound(&rule) || (last > 0 && jmb_rule_order(&rule) <= last))
            return jmb_bad_section(s, "wrong contents or order in rule", i);
        last = jmb_rule_order(&rule);
        if (rule.kind == JMB_RULE_DECODE) t->decode = rule;
        else if (rule.kind == JMB_RULE_SPACE) t->space = rule;
        else t->normaliser[t->normaliser_count++] = rule;
        if (rule.kind != JMB_RULE_DECODE) growth *= jmb_rule_growth(&rule);
        if (growth > JMB_MAX_GROWTH) return jmb_bad_section(s, "text grows too much in rule", i);
    }
    if ((t->flags & (JMB_TEXT_SPLIT | JMB_TEXT_PREFIX_FIRST | JMB_TEXT_PREFIX_ALWAYS)) && !t->space.kind)
        return jmb_bad_section(s, "no rule SPACE for flags", t->flags);
    if ((t->flags & JMB_TEXT_DROP_FIRST) && (!t->decode.kind || t->strip > 0))
        return jmb_bad_section(s, "no rule DECODE for flags", t->flags);
    if (((t->flags & JMB_TEXT_RAW) && ((t->flags & JMB_TEXT_CHARS) || t->decode.kind || t->strip > 0))
        || ((t->flags & JMB_TEXT_GPT2) && (t->flags & JMB_TEXT_SPLIT)))
        return jmb_bad_section(s, "rules or flags that exclude each other:", t->flags);
    return JAMBA_OK;
}

/* Everything after the rules has a size that the header tells: compared before anything is allocated. */
static jamba_result jmb_check_section_size(jmb_section *s, const jmb_tokenizer *t)
{
    uint64_t need = s->at + 4 * ((uint64_t)t->tokens + 1) + jmb_round_up(t->tokens, 4) + 12 * (uint64_t)t->merges;
    need += t->text_size + (t->flags & JMB_TEXT_BYTES ? 1024u : 0u);
    if (need == s->size) return JAMBA_OK;
    return jmb_fail(s->error, JAMBA_ERR_FORMAT, s->offset, "the tokenizer has %z bytes, not %l", s->size, need);
}

/* `count` numbers from the section in the heap; NULL when there is no memory. */
static uint32_t *jmb_section_u32(jmb_section *s, size_t count)
{
    uint32_t *numbers = (uint32_t *)jmb_heap_take(s->heap, count, sizeof *numbers);
    size_t i;
    for (i = 0; i < count && numbers; i++) numbers[i] = jmb_load_u32(s->data + s->at + 4 * i);
    return numbers;
}

static uint8_t *jmb_section_bytes(jmb_section *s, size_t count)
{
    uint8_t *bytes = (uint8_t *)jmb_heap_take(s->heap, count, 1);
    if (bytes && count > 0) memcpy(bytes, s->data + s->at, count);
    return bytes;
}

static jamba_result jmb_parse_offsets(jmb_section *s, jmb_tokenizer *t)
{
    uint32_t *offsets = jmb_section_u32(s, (size_t)t->tokens + 1), i;
    if (!offsets) return jmb_no_memory(s->error);
    t->offsets = offsets;
    if (offsets[0] != 0) return jmb_bad_section(s, "its text does not begin at 0 but at", offsets[0]);
    for (i = 0; i < t->tokens; i++, s->at += 4)
        if (offsets[i + 1] < offsets[i] || offsets[i + 1] - offsets[i] > JMB_MAX_TOKEN)
            return jmb_bad_section(s, "wrong size of token", i);
    if (offsets[i] != t->text_size) return jmb_bad_section(s, "its text does not end at", t->text_size);
    s->at += 4;
    return JAMBA_OK;
}

static jamba_result jmb_parse_token_flags(jmb_section *s, jmb_tokenizer *t)
{
    const uint32_t kinds = JMB_TOKEN_KINDS;
    uint32_t i;
    t->token_flags = jmb_section_bytes(s, t->tokens);
    if (!t->token_flags) return jmb_no_memory(s->error);
    for (i = 0; i < t->tokens; i++, s->at++) {
        uint32_t flags = t->token_flags[i];
        bool has_text = t->offsets[i + 1] > t->offsets[i];
        if (has_text != ((flags & kinds) != 0) || (flags & ~(uint32_t)JMB_TOKEN_FLAGS)
            || ((flags & ~kinds) && !(flags & JMB_TOKEN_ADDED)))
            return jmb_bad_section(s, "wrong flags of token", i);
    }
    JMB_TRY(jmb_check_padding(s, s->at, (s->at + 3) & ~(size_t)3));
    s->at = (s->at + 3) & ~(size_t)3;
    return JAMBA_OK;
}

static jamba_result jmb_parse_texts(jmb_section *s, jmb_tokenizer *t)
{
    size_t start = s->at;
    uint32_t i;
    s->at = s->size - t->text_size;
    t->text = jmb_section_bytes(s, t->text_size);
    if (!t->text || !jmb_table_make(&t->by_text, s->heap, t->tokens)) return jmb_no_memory(s->error);
    for (i = 0; i < t->tokens; i++) {
        size_t size;
        const uint8_t *text = jmb_token_data(t, i, &size);
        bool raw = (t->flags & JMB_TEXT_RAW) != 0;
        uint32_t slot, kinds = raw ? t->token_flags[i] & JMB_TOKEN_KINDS : (uint32_t)JMB_TOKEN_KINDS;
        if (size == 0) continue;
        if ((!raw || (kinds & JMB_TOKEN_ADDED)) && jmb_utf8_prefix(text, size) < size)
            return jmb_bad_section(s, "not UTF-8: token", i);
        if (jmb_find_text(t, text, size, kinds, &slot) != JMB_NO_TOKEN)
            return jmb_bad_section(s, "repeated text in token", i);
        if (slot == JMB_NO_TOKEN) return jmb_bad_section(s, "too many hash collisions at token", i);
        t->by_text.slots[slot] = i;
    }
    s->at = start;
    return JAMBA_OK;
}

static jamba_result jmb_parse_byte_tokens(jmb_section *s, jmb_tokenizer *t)
{
    uint32_t i;
    for (i = 0; i < 256; i++) {
        uint32_t token = t->flags & JMB_TEXT_BYTES ? jmb_load_u32(s->data + s->at) : JMB_NO_TOKEN;
        const uint8_t *text;
        size_t size;
        t->bytes[i] = token;
        if (!(t->flags & JMB_TEXT_BYTES)) continue;
        if (token != JMB_NO_TOKEN) {
            if (token >= t->tokens || !(t->token_flags[token] & JMB_TOKEN_MODEL))
                return jmb_bad_section(s, "wrong token for byte", i);
            text = jmb_token_data(t, token, &size);
            if (jmb_byte_of(text, size) != (int)i) return jmb_bad_section(s, "wrong token for byte", i);
        }
        s->at += 4;
    }
    return JAMBA_OK;
}

/* Whether the merge's tokens exist and its result is written as both parts in a row. */
static bool jmb_merge_is_sound(const jmb_tokenizer *t, const jmb_merge *merge)
{
    const uint8_t *left, *right, *result;
    size_t left_size, right_size, size;
    if (merge->left >= t->tokens || merge->right >= t->tokens || merge->result >= t->tokens) return false;
    if (!(t->token_flags[merge->left] & t->token_flags[merge->right] & t->token_flags[merge->result] & JMB_TOKEN_MODEL))
        return false;
    left = jmb_token_data(t, merge->left, &left_size);
    right = jmb_token_data(t, merge->right, &right_size);
    result = jmb_token_data(t, merge->result, &size);
    return size == left_size + right_size && memcmp(result, left, left_size) == 0
        && memcmp(result + left_size, right, right_size) == 0;
}

static jamba_result jmb_parse_merges(jmb_section *s, jmb_tokenizer *t)
{
    jmb_merge *merges = (jmb_merge *)jmb_heap_take(s->heap, t->merges, sizeof *merges);
    uint32_t i;
    if (!merges || !jmb_table_make(&t->by_pair, s->heap, t->merges)) return jmb_no_memory(s->error);
    t->merge = merges;
    for (i = 0; i < t->merges; i++, s->at += 12) {
        const uint8_t *p = s->data + s->at;
        uint32_t slot, result = jmb_load_u32(p + 8);
        bool tie = (result & JMB_MERGE_TIE) != 0;
        if (tie && i == 0) return jmb_bad_section(s, "no merge before merge", i);
        merges[i].left = jmb_load_u32(p);
        merges[i].right = jmb_load_u32(p + 4);
        merges[i].result = result & ~JMB_MERGE_TIE;
        merges[i].rank = tie ? merges[i - 1].rank : i;
        if (!jmb_merge_is_sound(t, &merges[i])) return jmb_bad_section(s, "wrong tokens in merge", i);
        if (jmb_find_merge(t, merges[i].left, merges[i].right, &slot) != JMB_NO_TOKEN)
            return jmb_bad_section(s, "repeated pair in merge", i);
        if (slot == JMB_NO_TOKEN) return jmb_bad_section(s, "too many hash collisions at merge", i);
        t->by_pair.slots[slot] = i;
    }
    return JAMBA_OK;
}

/* ---- added tokens at load ------------------------------------------------------------------ */

/* The token's text as it is matched, in units; NULL when there is no memory. */
static const jmb_unit *jmb_added_units(jmb_encoder *e, uint32_t token, size_t *size)
{
    const uint8_t *text = jmb_token_data(e->t, token, size);
    jmb_unit *units = (jmb_unit *)jmb_room_take(&e->raw, e->allocator, *size, sizeof *units);
    if (!units) return NULL;
    jmb_put_units(units, text, *size, 0);
    if ((e->t->flags & JMB_TEXT_AS_WRITTEN) || !(e->t->token_flags[token] & JMB_TOKEN_NORMALISED)) return units;
    return jmb_normalise(e, units, size);
}

typedef struct jmb_added_sizes {
    uint64_t raw, normalised; /* bytes of text */
    uint32_t patterns;
} jmb_added_sizes;

static jamba_result jmb_measure_added(jmb_section *s, jmb_encoder *e, jmb_added_sizes *sizes)
{
    const jmb_tokenizer *t = e->t;
    uint32_t i;
    for (i = 0; i < t->tokens; i++) {
        size_t size;
        if (!(t->token_flags[i] & JMB_TOKEN_ADDED)) continue;
        if (!jmb_added_units(e, i, &size)) return jmb_no_memory(s->error);
        if (size == 0 || size > JMB_MAX_TOKEN) return jmb_bad_section(s, "wrong size, normalised, of token", i);
        if (t->token_flags[i] & JMB_TOKEN_NORMALISED) {
            sizes->normalised += size;
            sizes->patterns++;
        } else {
            sizes->raw += size;
        }
        if (sizes->raw + sizes->normalised > JMB_MAX_ADDED_TEXT)
            return jmb_bad_section(s, "too much text of added tokens up to", i);
    }
    return JAMBA_OK;
}

/* The child of `node` for `byte`, made if it is not there. */
static uint32_t jmb_trie_grow(jmb_trie *trie, uint32_t node, uint8_t byte)
{
    uint32_t child = jmb_trie_child(trie, node, byte);
    if (child != 0) return child;
    child = trie->count++;
    trie->nodes[child].byte = byte;
    trie->nodes[child].token = JMB_NO_TOKEN;
    if (node == 0) {
        trie->first[byte] = child;
    } else {
        trie->nodes[child].sibling = trie->nodes[node].child;
        trie->nodes[node].child = child;
    }
    return child;
}

/* False when the text is there already. */
static bool jmb_trie_insert(jmb_trie *trie, const jmb_unit *text, size_t size, uint32_t token)
{
    uint32_t node = 0;
    size_t i;
    for (i = 0; i < size; i++) node = jmb_trie_grow(trie, node, (uint8_t)text[i]);
    if (trie->nodes[node].token != JMB_NO_TOKEN) return false;
    trie->nodes[node].token = token;
    return true;
}

static bool jmb_trie_make(jmb_trie *trie, jmb_heap *heap, uint64_t text_size)
{
    if (text_size == 0) return true;
    trie->nodes = (jmb_trie_node *)jmb_heap_take(heap, text_size + 1, sizeof *trie->nodes);
    trie->count = 1;
    return trie->nodes != NULL;
}

/* Keeps what the token looks like in normalised text. */
static void jmb_add_pattern(jmb_tokenizer *t, uint8_t *room, const jmb_unit *text, size_t size, uint32_t token)
{
    jmb_pattern *pattern = &t->patterns[t->pattern_count];
    size_t i;
    pattern->token = token;
    pattern->size = (uint32_t)size;
    pattern->offset = t->pattern_count > 0 ? pattern[-1].offset + pattern[-1].size : 0;
    for (i = 0; i < size; i++) room[pattern->offset + i] = (uint8_t)text[i];
    t->pattern_count++;
}

static jamba_result jmb_index_added(jmb_section *s, jmb_tokenizer *t, jmb_encoder *e)
{
    jmb_added_sizes sizes = { 0, 0, 0 };
    uint8_t *room;
    uint32_t i;
    JMB_TRY(jmb_measure_added(s, e, &sizes));
    t->patterns = (jmb_pattern *)jmb_heap_take(s->heap, sizes.patterns, sizeof *t->patterns);
    t->pattern_text = room = (uint8_t *)jmb_heap_take(s->heap, sizes.normalised, 1);
    if (!t->patterns || !room || !jmb_trie_make(&t->raw, s->heap, sizes.raw)
        || !jmb_trie_make(&t->normalised, s->heap, sizes.normalised))
        return jmb_no_memory(s->error);
    for (i = 0; i < t->tokens; i++) {
        bool normalised = (t->token_flags[i] & JMB_TOKEN_NORMALISED) != 0;
        const jmb_unit *units;
        size_t size;
        if (!(t->token_flags[i] & JMB_TOKEN_ADDED)) continue;
        units = jmb_added_units(e, i, &size);
        if (!units) return jmb_no_memory(s->error);
        if (!jmb_trie_insert(normalised ? &t->normalised : &t->raw, units, size, i))
            return jmb_bad_section(s, "repeated normalised text in token", i);
        if (normalised) jmb_add_pattern(t, room, units, size, i);
    }
    return JAMBA_OK;
}

static jamba_result jmb_parse_tokenizer(jmb_section *s, jmb_tokenizer *t)
{
    jmb_encoder e;
    jamba_result result;
    if (s->size < JMB_TOKENIZER_BYTES) return jmb_bad_section(s, "too short, bytes:", (uint32_t)s->size);
#define JMB_X(type, name, at) t->name = JMB_READ_##type(s->data + (at));
    JMB_TOKENIZER_FIELDS(JMB_X)
#undef JMB_X
    JMB_TRY(jmb_check_section_header(s, t));
    s->at = JMB_TOKENIZER_BYTES;
    JMB_TRY(jmb_parse_rules(s, t));
    JMB_TRY(jmb_check_section_size(s, t));
    JMB_TRY(jmb_parse_offsets(s, t));
    JMB_TRY(jmb_parse_token_flags(s, t));
    JMB_TRY(jmb_parse_texts(s, t));
    JMB_TRY(jmb_parse_byte_tokens(s, t));
    JMB_TRY(jmb_parse_merges(s, t));
    if (t->unk != JMB_NO_TOKEN && !(t->token_flags[t->unk] & JMB_TOKEN_MODEL))
        return jmb_bad_section(s, "unk is not in the model's vocabulary:", t->unk);
    memset(&e, 0, sizeof e);
    e.t = t;
    e.allocator = &s->heap->allocator;
    result = jmb_index_added(s, t, &e);
    jmb_encoder_free(&e);
    return result;
}

/* Reads and checks the section, untrusted bytes at `file_offset` of the file; an empty one gives no
 * tokenizer. What is kept is copied into the heap. */
static jamba_result jmb_tokenizer_load(jmb_tokenizer *t, jmb_heap *heap, const uint8_t *data, size_t size,
    uint64_t file_offset, uint32_t vocab, jamba_error *error)
{
    jmb_section s = { data, size, 0, file_offset, heap, error };
    jamba_result result;
    memset(t, 0, sizeof *t);
    if (size == 0) return JAMBA_OK;
    t->vocab = vocab;
    result = jmb_parse_tokenizer(&s, t);
    if (result != JAMBA_OK) memset(t, 0, sizeof *t);
    return result;
}

/* ===========================================================================================
 * >>chat - turns of a conversation to tokens
 *
 * A chat format is strings in the model file, not a template language: chat.format (its name), chat.ROLE.open and
 * chat.ROLE.close around the content of each role, and where they differ from the default
 *     chat.begin           in front of a conversation; by default the model's first token
 *     chat.default_system  content of a system turn for conversations that do not begin with one
 *     chat.reply           what opens the model's reply; by default chat.assistant.open
 * Special tokens match in these strings and never in content; the rest is one text, so that the tokens
 * are those of the whole conversation written out.
 * =========================================================================================== */

/* A conversation as pieces of one text. */
typedef struct jmb_chat {
    const jmb_metadata *metadata;
    jmb_piece *pieces;
    size_t count;
} jmb_chat;

static void jmb_chat_put(jmb_chat *chat, const char *text, bool special)
{
    jmb_piece *piece = &chat->pieces[chat->count++];
    piece->text = text;
    piece->length = strlen(text);
    piece->special = special;
}

/* The string chat.ROLE.PART, NULL when the format has none. */
static const char *jmb_chat_string(const jmb_metadata *m, const char *role, const char *part)
{
    char key[64];
    if (strlen(role) > 32) return NULL;
    jmb_format(key, sizeof key, "chat.%s.%s", role, part);
    return jmb_find_string(m, key);
}

static jamba_result jmb_chat_turn(jmb_chat *chat, const char *role, const char *content, jamba_error *error)
{
    const char *open = jmb_chat_string(chat->metadata, role, "open");
    const char *close = jmb_chat_string(chat->metadata, role, "close");
    size_t length = strlen(content), valid = jmb_utf8_prefix((const uint8_t *)content, length);
    if (!open || !close)
        return jmb_fail(error, JAMBA_ERR_UNSUPPORTED, 0, "the model's chat format has no role '%s'", role);
    if (valid < length)
        return jmb_fail(error, JAMBA_ERR_TEXT, valid, "not valid UTF-8 at byte %z of a %s message", valid, role);
    jmb_chat_put(chat, open, true);
    jmb_chat_put(chat, content, false);
    jmb_chat_put(chat, close, true);
    return JAMBA_OK;
}

/* One more string of the format, which must be there. */
static jamba_result jmb_chat_mark(jmb_chat *chat, const char *text, const char *key, jamba_error *error)
{
    if (!text) return jmb_fail(error, JAMBA_ERR_UNSUPPORTED, 0, "the model's chat format has no %s", key);
    jmb_chat_put(chat, text, true);
    return JAMBA_OK;
}

/* What stands before the first message. */
static jamba_result jmb_chat_begin(jmb_chat *chat, const jamba_message *messages, size_t count, jamba_error *error)
{
    const char *begin = jmb_find_string(chat->metadata, "chat.begin");
    const char *system = jmb_find_string(chat->metadata, "chat.default_system");
    if (begin) jmb_chat_put(chat, begin, true);
    if (!system || (count > 0 && strcmp(messages[0].role, "system") == 0)) return JAMBA_OK;
    return jmb_chat_turn(chat, "system", system, error);
}

static jamba_result jmb_chat_render(
    jmb_chat *chat, const jamba_message *messages, size_t count, unsigned flags, jamba_error *error)
{
    const jmb_metadata *m = chat->metadata;
    const char *reply = jmb_find_string(m, "chat.reply");
    size_t i;
    if (flags & JAMBA_CHAT_BEGIN) JMB_TRY(jmb_chat_begin(chat, messages, count, error));
    if (flags & JAMBA_CHAT_CONTINUE)
        JMB_TRY(jmb_chat_mark(chat, jmb_find_string(m, "chat.assistant.close"), "chat.assistant.close", error));
    for (i = 0; i < count; i++) JMB_TRY(jmb_chat_turn(chat, messages[i].role, messages[i].content, error));
    if (!(flags & JAMBA_CHAT_REPLY)) return JAMBA_OK;
    return jmb_chat_mark(chat, reply ? reply : jmb_find_string(m, "chat.assistant.open"), "chat.assistant.open", error);
}

static jamba_result jmb_chat_check(
    const jmb_metadata *m, const jamba_message *messages, size_t count, unsigned flags, jamba_error *error)
{
    size_t i;
    if (!jmb_find_string(m, "chat.format"))
        return jmb_fail(error, JAMBA_ERR_UNSUPPORTED, 0, "this model has no chat format: it completes text");
    if (!messages && count > 0) return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "messages is NULL");
    for (i = 0; i < count; i++)
        if (!messages[i].role || !messages[i].content)
            return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "role or content of message %z is NULL", i);
    if ((flags & JAMBA_CHAT_BEGIN) && (flags & JAMBA_CHAT_CONTINUE))
        return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "JAMBA_CHAT_BEGIN and JAMBA_CHAT_CONTINUE exclude each other");
    return JAMBA_OK;
}

/* Tokens of one or more turns. */
static jamba_result jmb_chat_encode(const jmb_metadata *m, const jmb_tokenizer *t, const jamba_allocator *allocator,
    const jamba_message *messages, size_t count, unsigned flags, int32_t *tokens, size_t capacity, size_t *needed,
    jamba_error *error)
{
    jmb_chat chat = { m, NULL, 0 };
    /* three pieces a turn; begin, the default system turn, two marks */
    uint64_t bytes = jmb_mul(jmb_add(jmb_mul(count, 3), 6), sizeof *chat.pieces);
    bool begins = (flags & JAMBA_CHAT_BEGIN) != 0;
    int32_t first = begins && !jmb_find_string(m, "chat.begin") ? (int32_t)m->header.bos : -1; /* bos may be -1 */
    jamba_result result;
    *needed = 0;
    JMB_TRY(jmb_chat_check(m, messages, count, flags, error));
    if (bytes > SIZE_MAX / 2) return jmb_no_memory(error);
    chat.pieces = (jmb_piece *)allocator->alloc(allocator->user, (size_t)bytes, JMB_ALIGN);
    if (!chat.pieces) return jmb_no_memory(error);
    result = jmb_chat_render(&chat, messages, count, flags, error);
    if (result == JAMBA_OK)
        result = jmb_encode_text(
            t, allocator, chat.pieces, chat.count, first, begins, tokens, capacity, needed, error);
    allocator->free(allocator->user, chat.pieces, (size_t)bytes);
    return result;
}
/* ===========================================================================================
 * >>plan - the forward pass as a list of operations
 *
 * A model's program is unrolled, once at load, into a flat list of small operations. Each is `tasks`
 * independent pieces of work over the rows (tokens) of one pass, and ends where the next needs all of
 * it. That one form serves serial runs, executors and time budgets alike: a place in the forward pass
 * is the pair (operation, task). Tasks write disjoint data, and no task's arithmetic depends on how
 * rows or tasks are split.
 * =========================================================================================== */

/* A matrix of activations in a session's scratch: `fan` rows a token, `width` floats used of `stride`.
 * `offset` is in floats for one row of capacity, so that a view fits any session. */
typedef struct jmb_view {
    uint32_t width, stride, fan;
    uint32_t col; /* first column */
    uint64_t offset;
} jmb_view;

typedef enum jmb_op_kind {
    JMB_OP_EMBED,    /* out[0] = embedding rows of the tokens; out[1] too, if it has a width */
    JMB_OP_ADAPT_EMBED, /* both += those of LoRA adapters */
    JMB_OP_ADAPT,    /* A in of LoRA adapters, for the linear that follows */
    JMB_OP_BESIDE,   /* out[0] = in beside out[1] */
    JMB_OP_SUM,      /* out[0] = in + out[1] */
    JMB_OP_NORM,     /* out[0] = w[0] in / rms(in) */
    JMB_OP_QUANTISE, /* codes = in, for the linears that follow */
    JMB_OP_LINEAR,   /* out[i] = w[i] in + low_w[i] low[i] + bias[i], for each part i */
    JMB_OP_CONV,     /* out[i] = act(w[i] * out[i] + bias[i]) over time, in place, for each part i */
    JMB_OP_SCAN,     /* out[0] = selective scan of out[0], gated */
    JMB_OP_SCAN2,    /* the same with one decay a head, not gated */
    JMB_OP_GATE,     /* out[0] = grouped norm of out[0] * silu(in) */
    JMB_OP_CACHE,    /* rotates q and k, appends k and v to the KV cache */
    JMB_OP_ATTEND,   /* softmax(q K) V of each page in the window */
    JMB_OP_MERGE,    /* out[0] = those of all pages together; back to ATTEND while pages are left */
    JMB_OP_ROUTE,    /* experts and weights of each row */
    JMB_OP_GROUP,    /* sorts the rows by expert */
    JMB_OP_EXPERT_UP,   /* out[0] = w in of each row's experts, one matrix an expert */
    JMB_OP_EXPERT_DOWN, /* the same, in by assignment */
    JMB_OP_COMBINE,     /* out[0] += each row's experts, weighted */
    JMB_OP_KEEP,        /* the marks that follow this pass = states and logits */
    JMB_OP_COUNT
} jmb_op_kind;

enum { JMB_MAX_PARTS = 5 };

enum { /* jmb_op.flags */
    JMB_OP_ADD = 1,      /* add to what out holds: the residual */
    JMB_OP_LAST = 2,     /* only the rows whose logits are wanted, one after the other */
    JMB_OP_ASSIGNED = 4, /* rows are (token, expert) assignments, `fan` a token */
    JMB_OP_CODES = 8,    /* the input is the quantised copy */
    JMB_OP_EXACT = 16,   /* write no lane beyond the width: out is a column range */
    JMB_OP_SLABS = 32    /* a task is a range of columns, not a row */
};

/* What a task of a linear computes at most: outputs, 16 lanes each, of so many rows. */
typedef struct jmb_tile {
    uint32_t outputs, rows;
} jmb_tile;

typedef struct jmb_op {
    jmb_op_kind kind;
    uint32_t flags, parts;
    uint32_t chain; /* operations from here on that run as one phase, task by task; 0 inside a chain */
    const jmb_block *block;
    jmb_view in, out[JMB_MAX_PARTS];
    const jmb_tensor *w[JMB_MAX_PARTS], *bias[JMB_MAX_PARTS];
    jmb_view low[JMB_MAX_PARTS];            /* adapters: A in, of low rank */
    const jmb_tensor *low_w[JMB_MAX_PARTS]; /* adapters: B, or NULL */
    jmb_tile tiles[2][JMB_MAX_PARTS];       /* linear, experts: without and with a time budget */
    float eps;
    uint32_t slot; /* linear, experts, embedding: of the first matrix among all that adapters can go with */
    uint64_t conv_at, state_at; /* floats into the session's recurrent state; keep: all of them */
    uint64_t kv_at, scale_at;   /* of the layers before, in one page: elements, and scales of q8 */
} jmb_op;

/* Which expert runs which row, of one moe block in one pass. n = rows * top_k assignments. */
typedef struct jmb_routing {
    int32_t *expert; /* (rows, top_k) ascending in each row */
    float *weight;   /* (rows, top_k) */
    int32_t *start;  /* (experts + 1) first assignment of each expert */
    int32_t *row;    /* (n) row of each assignment, sorted by expert, then row */
    int32_t *place;  /* (rows, top_k) where the sorted ones have each choice */
    int32_t *used;   /* (1 + experts) how many experts have a row, then which, ascending */
} jmb_routing;

enum { JMB_STREAMS = 4 }; /* panels at once, read side by side for few rows */
enum { JMB_PREFETCH = 2048 }; /* bytes ahead of the weights in use */
#ifndef JMB_PAGE /* tests make pages small */
#define JMB_PAGE 256 /* keys in a KV page, and in a softmax block: a multiple of 16 */
#endif
enum { JMB_WINDOW = 64 }; /* most pages whose partial results wait for each other */
enum { JMB_QUERIES = 16 }; /* queries of one KV head that share a reading of its page */
enum { JMB_WIDE = 64 }; /* vectors of the KV cache that are widened to floats at a time */

/* One layer's share of a KV page: for each KV head, K as [PAGE/16][head_dim][16 keys], then V as
 * [PAGE][stride]. q8 adds, behind all elements of the page, PAGE scales for K and PAGE for V a head. */
static uint64_t jmb_page_elements(const jmb_block *b)
{
    return (uint64_t)b->kv_heads * JMB_PAGE * (b->head_dim + jmb_pad16(b->head_dim));
}

/* A place to go back to. */
typedef struct jmb_mark {
    uint32_t position;
    float *state, *logits;
} jmb_mark;

/* One matrix of a LoRA adapter (Hu et al. 2021): y += B (scale A x). Of the embedding, A has a row a token. */
typedef struct jmb_lora {
    uint32_t block, role, index; /* what it goes with; block JMB_NONE: embedding or head */
    jmb_tensor a, b;             /* (rank, cols) and (rows, rank) */
} jmb_lora;

/* What one session adapts, and scale A x of its rows. */
typedef struct jmb_adapters {
    size_t size;                 /* of this allocation */
    uint32_t count, slots;       /* slots: matrices that a row can meet in one operation */
    const jmb_lora **loras[JAMBA_ADAPTERS_MAX]; /* matrices by slot of the plan, NULL where it has none */
    float scale[JAMBA_ADAPTERS_MAX];
    uint64_t hash[JAMBA_ADAPTERS_MAX];          /* of the file */
    uint32_t at[JAMBA_ADAPTERS_MAX + 1];        /* floats of A x in front of those of each */
    float *low;                                 /* (rows, slots, at[count]) */
} jmb_adapters;

/* Consecutive rows of a pass that belong to one session: their place in time, and its memory. */
typedef struct jmb_span {
    struct jamba_session *session; /* NULL: it has left, and its memory is not to be touched */
    uint32_t first, rows; /* of the pass */
    uint32_t position;    /* of the first row */
    const int32_t *tokens; /* (rows) */
    float *state;
    jmb_adapters *adapters; /* NULL: none */
    const float *logits; /* of the last row, where they are wanted */
    jmb_mark *mark;      /* filled at the end of the pass; NULL: none */
    uint8_t **pages; /* KV, each of all layers */
    uint32_t kept;   /* tokens whose keys and values are there, whatever of the state is run again */
    jamba_kv_type kv_type;
} jmb_span;

/* What one pass works on: `rows` tokens of one session or several. */
typedef struct jmb_pass {
    uint32_t rows, span_count;
    bool sliced;          /* tasks are as short as a time budget needs them */
    uint32_t slab;        /* blocks of 64 columns in a slab of one row */
    jmb_span *spans;
    uint32_t capacity;    /* rows that the scratch holds */
    uint32_t wanted;      /* rows whose logits are wanted */
    uint32_t *wanted_row; /* (wanted) */
    float **logits;       /* (wanted) where they go; NULL: nowhere */
    float *scratch;
    uint8_t *codes;   /* quantised rows, see jmb_codes_bytes */
    size_t codes_row; /* bytes between them */
    uint64_t page_elements; /* of all layers */
    float *partials;        /* attention: (capacity) running sums, then (capacity) of the window's pages */
    uint32_t window;        /* first page of the window */
    uint32_t lora_panels;   /* of A, of all adapters of the session that has most; 0: none has any */
    jmb_routing routing;
} jmb_pass;

JMB_INLINE float *jmb_row(const jmb_pass *p, const jmb_view *v, size_t row)
{
    return p->scratch + (size_t)v->offset * p->capacity + row * v->stride + v->col;
}

/* The span that holds a row. */
static const jmb_span *jmb_span_of(const jmb_pass *p, uint32_t row)
{
    const jmb_span *span = p->spans;
    while (row - span->first >= span->rows) span++;
    return span;
}

/* A quantised row of k floats: codes s8 [k up to 64], then a float scale for each 64 and an int32 sum of
 * codes for each 32 of them. */
static size_t jmb_codes_bytes(size_t k)
{
    return jmb_pad64(jmb_pad64(k) + jmb_pad64(k) / 64 * 12);
}

/* Outputs of 16 lanes: one panel each, two where they are paired. */
static uint32_t jmb_outputs_of(const jmb_tensor *t)
{
    return (t->rows + 15) / 16;
}

static uint32_t jmb_op_rows(const jmb_op *op, const jmb_pass *p)
{
    if (op->flags & JMB_OP_LAST) return p->wanted;
    return op->flags & JMB_OP_ASSIGNED ? p->rows * op->in.fan : p->rows;
}

/* Columns of one span that a task works on, all its rows together. */
typedef struct jmb_slab {
    const jmb_span *span;
    uint32_t begin, end;
} jmb_slab;

/* Whole blocks of quantised numbers; more of them where rows are few. */
static uint32_t jmb_slab_width(const jmb_pass *p)
{
    return p->rows < p->slab ? 64 * (p->slab / p->rows) : 64;
}

static uint32_t jmb_slabs(const jmb_pass *p, uint32_t width)
{
    return (width + jmb_slab_width(p) - 1) / jmb_slab_width(p);
}

static jmb_slab jmb_slab_of(const jmb_pass *p, uint32_t width, uint32_t task)
{
    uint32_t count = jmb_slabs(p, width);
    jmb_slab slab;
    slab.span = p->spans + task / count;
    slab.begin = task % count * jmb_slab_width(p);
    slab.end = slab.begin + jmb_slab_width(p);
    if (slab.end > width) slab.end = width;
    return slab;
}

/* Pages that a softmax over this span's last row takes. */
static uint32_t jmb_span_pages(const jmb_span *span)
{
    return (span->position + span->rows + JMB_PAGE - 1) / JMB_PAGE;
}

/* Attention works through the pages in windows, so that partial results of all pages need not be kept:
 * as many pages at a time as there are rows to spare. */
static uint32_t jmb_pages_left(const jmb_pass *p)
{
    uint32_t most = 0, i;
    for (i = 0; i < p->span_count; i++)
        if (jmb_span_pages(&p->spans[i]) > most) most = jmb_span_pages(&p->spans[i]);
    return most - p->window;
}

static uint32_t jmb_window_pages(const jmb_pass *p)
{
    uint32_t left = jmb_pages_left(p), spare = p->capacity / p->rows;
    if (spare > JMB_WINDOW) spare = JMB_WINDOW;
    return left < spare ? left : spare;
}

/* One KV head's share of one page. */
typedef struct jmb_kv_head {
    jamba_kv_type type;
    uint8_t *k, *v, *k_scale, *v_scale; /* little-endian, as tensors are; q8: an f32 scale for each key */
    size_t dim, stride;
} jmb_kv_head;

static size_t jmb_kv_bytes(jamba_kv_type type)
{
    return type == JAMBA_KV_F32 ? 4 : type == JAMBA_KV_Q8 ? 1 : 2;
}

static jmb_kv_head jmb_kv_head_of(const jmb_pass *p, const jmb_op *op, const jmb_span *span, size_t page, size_t head)
{
    uint8_t *at = span->pages[page];
    size_t bytes = jmb_kv_bytes(span->kv_type);
    jmb_kv_head h;
    h.type = span->kv_type;
    h.dim = op->block->head_dim;
    h.stride = jmb_pad16(h.dim);
    h.k = at + ((size_t)op->kv_at + head * JMB_PAGE * (h.dim + h.stride)) * bytes;
    h.v = h.k + JMB_PAGE * h.dim * bytes;
    h.k_scale = at + (size_t)p->page_elements * bytes + ((size_t)op->scale_at + head * 2 * JMB_PAGE) * 4;
    h.v_scale = h.k_scale + JMB_PAGE * 4;
    return h;
}

/* Floats of a partial result of attention: the output of a head, then the maximum and sum of its softmax. */
static size_t jmb_partial_floats(const jmb_block *b)
{
    return jmb_pad16(b->head_dim) + 16;
}

/* Slot 0 holds what stands for a row, slot 1 + i the i-th page of the window. */
static float *jmb_partial(const jmb_pass *p, const jmb_block *b, uint32_t slot, uint32_t row, uint32_t head)
{
    size_t place = slot == 0 ? row : p->capacity + (size_t)(slot - 1) * p->rows + row;
    return p->partials + (place * b->heads + head) * jmb_partial_floats(b);
}

/* ---- tasks --------------------------------------------------------------------------------- */

/* Between two looks at the clock lies at most JMB_SLICE of work: bytes of weights, or what takes as long. A pass
 * under a time budget holds as many rows, and its tasks compute as much, as keep that. What is not divided may take
 * longer: 16 outputs for one row, one row of activations, the states of 64 channels, one query of one KV head over one
 * page.
 *
 * Bytes that other work counts for, each from the time of its tasks beside that of a linear of one row, which reads
 * its weights from memory (512 KiB: 20 us; jamba-3b, jamba-moe-1.7b, llama-3.2b, mamba2-780m and zamba2-1.2b at q8,
 * 1 to 128 rows, AMD EPYC with AVX-512, one thread): */
enum {
    JMB_REUSE = 12,       /* so many more rows against weights of q8 or q4 take as long as a byte for each number */
    JMB_WORK_FLOAT = 4,   /* a row against weights of floats: times that of q8 */
    JMB_WORK_ROW = 16,    /* norm, quantise, gate, sum: a number */
    JMB_WORK_EMBED = 100, /* a number unpacked by itself */
    JMB_WORK_CACHE = 64,  /* a number of a key or value */
    JMB_WORK_CONV = 16,   /* a number, and 4 for each tap */
    JMB_WORK_SCAN = 6,    /* a number of the state, each row; and 12 for reading and writing it */
    JMB_WORK_SCAN2 = 1,   /* the same for Mamba-2; and 8 */
    JMB_WORK_KV = 6,      /* a number of a page of one KV head; and a quarter for each query */
    JMB_WORK_CHOICE = 64  /* an expert considered; an assignment sorted */
};
#ifndef JMB_SLICE /* tests make slices small */
#define JMB_SLICE (512u << 10)
#endif
#define JMB_EMBED (JMB_SLICE / 128) /* columns of an embedding in a task */
#define JMB_KEEP (JMB_SLICE / 8)    /* floats of a mark in a task: a copy reads and writes */

/* Bytes of one output's weights, and what each further row of inputs adds. */
static uint64_t jmb_output_bytes(const jmb_tensor *w)
{
    return jmb_panel_bytes(w->type, w->cols) * (jmb_roles[w->role].paired ? 2 : 1);
}

static uint64_t jmb_output_work(const jmb_tensor *w)
{
    uint64_t numbers = (uint64_t)w->cols * (jmb_roles[w->role].paired ? 32 : 16);
    return numbers * (w->type >= JMB_Q8 ? 1 : JMB_WORK_FLOAT) / JMB_REUSE + 1;
}

/* Without a budget: about 128 KiB of weights, so that a layer has many tasks, but as many as are read side by side. */
static jmb_tile jmb_whole_tile(const jmb_tensor *w)
{
    uint32_t step = jmb_roles[w->role].paired ? JMB_STREAMS / 2 : JMB_STREAMS;
    uint64_t n = 131072 / jmb_output_bytes(w) / step;
    jmb_tile tile;
    tile.outputs = step * (uint32_t)(n < 1 ? 1 : n > 4 ? 4 : n);
    tile.rows = UINT32_MAX;
    return tile;
}

/* Of one output: bytes of weights, and what each further row of inputs adds; those of its own adapter (`low`, or NULL)
 * and of sessions' adapters included. */
typedef struct jmb_output_cost {
    uint64_t bytes, row;
} jmb_output_cost;

static jmb_output_cost jmb_cost_of(const jmb_tensor *w, const jmb_tensor *low, uint32_t lora_panels)
{
    uint64_t lora = lora_panels * 256 * (jmb_roles[w->role].paired ? 2u : 1u); /* numbers of B */
    jmb_output_cost cost;
    cost.bytes = jmb_output_bytes(w) + (low ? jmb_output_bytes(low) : 0) + lora * sizeof(float);
    cost.row = jmb_output_work(w) + (low ? jmb_output_work(low) : 0) + lora * JMB_WORK_FLOAT / JMB_REUSE;
    return cost;
}

/* With one: no more outputs than a slice holds, and rows with the rest of it, in whole tiles of the kernels. */
static jmb_tile jmb_sliced_tile(const jmb_tensor *w, const jmb_tensor *low, uint32_t lora_panels)
{
    jmb_output_cost cost = jmb_cost_of(w, low, lora_panels);
    jmb_tile tile = jmb_whole_tile(w);
    uint64_t left;
    if (tile.outputs > JMB_SLICE / cost.bytes)
        tile.outputs = cost.bytes < JMB_SLICE ? (uint32_t)(JMB_SLICE / cost.bytes) : 1;
    left = tile.outputs * cost.bytes < JMB_SLICE ? JMB_SLICE - tile.outputs * cost.bytes : 0;
    tile.rows = 1 + (uint32_t)(left / (tile.outputs * cost.row));
    if (tile.rows > 4) tile.rows = tile.rows > 12 ? tile.rows / 12 * 12 : tile.rows / 4 * 4;
    return tile;
}

static jmb_tile jmb_part_tile(const jmb_pass *p, const jmb_op *op, uint32_t part)
{
    if (p->sliced && p->lora_panels) return jmb_sliced_tile(op->w[part], op->low_w[part], p->lora_panels);
    return op->tiles[p->sliced][part];
}

/* Tasks of one part over so many rows. */
static uint32_t jmb_part_tasks(const jmb_pass *p, const jmb_op *op, uint32_t part, uint32_t rows)
{
    jmb_tile tile = jmb_part_tile(p, op, part);
    uint32_t groups = (jmb_outputs_of(op->w[part]) + tile.outputs - 1) / tile.outputs;
    return rows ? groups * ((rows - 1) / tile.rows + 1) : 0;
}

/* What one task of a linear computes: outputs of a part, or of an expert, for some rows (or assignments). */
typedef struct jmb_portion {
    uint32_t part, expert;
    uint32_t first, stop;    /* outputs */
    uint32_t row, stop_row;
} jmb_portion;

/* Task `task` of one part over `rows` rows: those of the same weights follow each other. */
static void jmb_portion_of_part(const jmb_pass *p, const jmb_op *op, uint32_t rows, uint32_t task, jmb_portion *portion)
{
    jmb_tile tile = jmb_part_tile(p, op, portion->part);
    uint32_t tiles = (rows - 1) / tile.rows + 1, outputs = jmb_outputs_of(op->w[portion->part]);
    portion->first = task / tiles * tile.outputs;
    portion->stop = outputs - portion->first < tile.outputs ? outputs : portion->first + tile.outputs;
    portion->row = task % tiles * tile.rows;
    portion->stop_row = rows - portion->row < tile.rows ? rows : portion->row + tile.rows;
}

static bool jmb_of_experts(const jmb_op *op)
{
    return op->kind == JMB_OP_EXPERT_UP || op->kind == JMB_OP_EXPERT_DOWN;
}

static uint32_t jmb_expert_rows(const jmb_pass *p, uint32_t expert)
{
    return (uint32_t)(p->routing.start[expert + 1] - p->routing.start[expert]);
}

static uint32_t jmb_linear_tasks(const jmb_pass *p, const jmb_op *op)
{
    uint32_t tasks = 0, i;
    for (i = 0; i < op->parts && !jmb_of_experts(op); i++) tasks += jmb_part_tasks(p, op, i, jmb_op_rows(op, p));
    for (i = 0; jmb_of_experts(op) && i < (uint32_t)p->routing.used[0]; i++)
        tasks += jmb_part_tasks(p, op, 0, jmb_expert_rows(p, (uint32_t)p->routing.used[1 + i]));
    return tasks;
}

static jmb_portion jmb_portion_of(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    const int32_t *expert;
    uint32_t rows = jmb_op_rows(op, p), tasks;
    jmb_portion portion = { 0, 0, 0, 0, 0, 0 };
    if (!jmb_of_experts(op)) {
        for (; task >= (tasks = jmb_part_tasks(p, op, portion.part, rows)); portion.part++) task -= tasks;
        jmb_portion_of_part(p, op, rows, task, &portion);
        return portion;
    }
    expert = p->routing.used + 1;
    for (; task >= (tasks = jmb_part_tasks(p, op, 0, jmb_expert_rows(p, (uint32_t)*expert))); expert++) task -= tasks;
    portion.expert = (uint32_t)*expert;
    jmb_portion_of_part(p, op, jmb_expert_rows(p, portion.expert), task, &portion);
    portion.row += (uint32_t)p->routing.start[portion.expert];
    portion.stop_row += (uint32_t)p->routing.start[portion.expert];
    return portion;
}

/* Queries of one KV head and span that are worked on together: rows in order, and the heads of each. */
static uint32_t jmb_query_count(const jmb_pass *p, const jmb_block *b)
{
    uint64_t most = JMB_SLICE / (2 * JMB_PAGE * (uint64_t)b->head_dim);
    if (!p->sliced || most >= JMB_WORK_KV + JMB_QUERIES / 4) return JMB_QUERIES;
    return most > JMB_WORK_KV ? 4 * (uint32_t)(most - JMB_WORK_KV) : 1;
}

static uint32_t jmb_query_tiles(const jmb_pass *p, const jmb_span *span, const jmb_block *b)
{
    return (span->rows * (b->heads / b->kv_heads) - 1) / jmb_query_count(p, b) + 1;
}

static uint32_t jmb_attend_tasks(const jmb_op *op, const jmb_pass *p)
{
    uint32_t tiles = 0, i;
    for (i = 0; i < p->span_count; i++) tiles += jmb_query_tiles(p, &p->spans[i], op->block);
    return tiles * op->block->kv_heads * jmb_window_pages(p);
}

static uint32_t jmb_conv_tasks(const jmb_op *op, const jmb_pass *p)
{
    uint32_t tasks = 0, i;
    for (i = 0; i < op->parts; i++) tasks += jmb_slabs(p, op->out[i].width);
    return tasks * p->span_count;
}

static uint32_t jmb_embed_pieces(const jmb_op *op)
{
    return (op->out[0].width + JMB_EMBED - 1) / JMB_EMBED;
}

/* ---- adapters ------------------------------------------------------------------------------ */

/* A row that an operation computes, as its session's adapters see it. */
typedef struct jmb_adapted {
    const jmb_adapters *adapters; /* NULL: none */
    uint32_t row, slot;           /* in their `low` */
} jmb_adapted;

static uint32_t jmb_choice_of(const jmb_pass *p, const jmb_op *op, uint32_t row, uint32_t expert)
{
    const int32_t *chosen = p->routing.expert + (size_t)row * op->block->top_k;
    uint32_t k = 0;
    while ((uint32_t)chosen[k] != expert) k++;
    return k;
}

/* Of output row `at` of a linear: a token's, a wanted one's, or an assignment to `expert`. */
static jmb_adapted jmb_adapted_of(const jmb_pass *p, const jmb_op *op, uint32_t part, uint32_t expert, size_t at)
{
    uint32_t row = jmb_of_experts(op) ? (uint32_t)p->routing.row[at]
        : op->flags & JMB_OP_LAST ? p->wanted_row[at] : (uint32_t)at;
    const jmb_span *span = jmb_span_of(p, row);
    jmb_adapted a;
    a.adapters = span->adapters;
    a.row = row - span->first;
    a.slot = a.adapters && jmb_of_experts(op) ? jmb_choice_of(p, op, row, expert) : part;
    return a;
}

/* Where A x of one adapter begins. */
static float *jmb_low_of(const jmb_adapted *a, uint32_t adapter)
{
    const jmb_adapters *all = a->adapters;
    return all->low + ((size_t)a->row * all->slots + a->slot) * all->at[all->count] + all->at[adapter];
}

/* Matrices that a row meets in the linear `op`: of its experts, or of each part, then of each part's own adapter. */
static uint32_t jmb_adapt_slots(const jmb_op *op)
{
    if (jmb_of_experts(op)) return op->block->top_k;
    return op->low_w[0] ? 2 * op->parts : op->parts;
}

static uint32_t jmb_adapt_tasks(const jmb_op *linear, const jmb_pass *p)
{
    uint32_t rows = linear->flags & JMB_OP_LAST ? p->wanted : p->rows;
    return rows * jmb_adapt_slots(linear) * p->lora_panels;
}

/* Pieces of a mark. */
static uint32_t jmb_keep_pieces(const jmb_op *op)
{
    return (uint32_t)((op->state_at + op->in.width + JMB_KEEP - 1) / JMB_KEEP);
}

static uint32_t jmb_keep_tasks(const jmb_op *op, const jmb_pass *p)
{
    uint32_t marks = 0, i;
    for (i = 0; i < p->span_count; i++) marks += p->spans[i].mark != NULL;
    return marks * jmb_keep_pieces(op);
}

/* How many tasks `op` has in this pass. */
static uint32_t jmb_op_tasks(const jmb_op *op, const jmb_pass *p)
{
    switch (op->kind) {
    case JMB_OP_EMBED: return p->rows * jmb_embed_pieces(op);
    case JMB_OP_LINEAR:
    case JMB_OP_EXPERT_UP:
    case JMB_OP_EXPERT_DOWN: return jmb_linear_tasks(p, op);
    case JMB_OP_CONV: return jmb_conv_tasks(op, p);
    case JMB_OP_SCAN: return jmb_slabs(p, op->out[0].width) * p->span_count;
    case JMB_OP_SCAN2: return op->block->heads * p->span_count;
    case JMB_OP_CACHE: return p->rows * op->block->kv_heads;
    case JMB_OP_ATTEND: return jmb_attend_tasks(op, p);
    case JMB_OP_MERGE: return p->rows * op->block->heads;
    case JMB_OP_GROUP: return 1;
    case JMB_OP_KEEP: return jmb_keep_tasks(op, p);
    case JMB_OP_ADAPT: return jmb_adapt_tasks(op + 1, p);
    default: return jmb_op_rows(op, p);
    }
}

static uint64_t jmb_tile_work(const jmb_op *op, const jmb_pass *p, uint32_t part)
{
    jmb_tile tile = jmb_part_tile(p, op, part);
    jmb_output_cost cost = jmb_cost_of(op->w[part], op->low_w[part], p->lora_panels);
    uint64_t rows = jmb_op_rows(op, p);
    return tile.outputs * (cost.bytes + ((rows < tile.rows ? rows : tile.rows) - 1) * cost.row);
}

static uint64_t jmb_linear_work(const jmb_op *op, const jmb_pass *p)
{
    uint64_t most = 0, i;
    for (i = 0; i < op->parts; i++)
        if (jmb_tile_work(op, p, (uint32_t)i) > most) most = jmb_tile_work(op, p, (uint32_t)i);
    return most;
}

/* The most work of any task of `op` in a pass of these rows, in bytes; at least 1. */
static uint64_t jmb_op_work(const jmb_op *op, const jmb_pass *p)
{
    const jmb_block *b = op->block;
    uint64_t rows = p->rows, slab = jmb_slab_width(p);
    switch (op->kind) {
    case JMB_OP_EMBED:
        return (uint64_t)(op->out[0].width < JMB_EMBED ? op->out[0].width : JMB_EMBED) * JMB_WORK_EMBED;
    case JMB_OP_ADAPT_EMBED: return (uint64_t)op->out[0].width * (1 + p->lora_panels * 16 * sizeof(float));
    case JMB_OP_ADAPT: return (uint64_t)op->in.width * 16 * sizeof(float);
    case JMB_OP_NORM: case JMB_OP_SUM: return (uint64_t)op->in.width * JMB_WORK_ROW;
    case JMB_OP_BESIDE: return (uint64_t)(op->in.width + op->out[1].width) * JMB_WORK_ROW;
    case JMB_OP_QUANTISE:
        return (op->flags & JMB_OP_SLABS ? rows * slab : (uint64_t)op->in.width) * JMB_WORK_ROW;
    case JMB_OP_LINEAR: case JMB_OP_EXPERT_UP: case JMB_OP_EXPERT_DOWN: return jmb_linear_work(op, p);
    case JMB_OP_CONV: return rows * slab * (JMB_WORK_CONV + 4 * b->d_conv);
    case JMB_OP_SCAN: return slab * b->d_state * (12 + JMB_WORK_SCAN * rows);
    case JMB_OP_SCAN2: return (uint64_t)(b->d_inner / b->heads) * b->d_state * (8 + JMB_WORK_SCAN2 * rows);
    case JMB_OP_GATE: return (uint64_t)b->d_inner * JMB_WORK_ROW;
    case JMB_OP_CACHE:
        return (uint64_t)b->head_dim * (2 * JMB_WORK_CACHE + b->heads / b->kv_heads * JMB_WORK_ROW);
    case JMB_OP_ATTEND:
        return 2 * JMB_PAGE * (uint64_t)b->head_dim * (4 * JMB_WORK_KV + jmb_query_count(p, b)) / 4;
    case JMB_OP_MERGE: return (uint64_t)jmb_partial_floats(b) * JMB_WINDOW * 4;
    case JMB_OP_ROUTE: return (uint64_t)b->experts * (1 + b->top_k) * JMB_WORK_CHOICE;
    case JMB_OP_GROUP: return (rows * b->top_k + b->experts) * JMB_WORK_CHOICE;
    case JMB_OP_COMBINE: return (uint64_t)op->out[0].width * b->top_k * JMB_WORK_ROW;
    default: return JMB_SLICE; /* keep */
    }
}

/* The same for the phase that `op` begins. */
static uint64_t jmb_phase_work(const jmb_op *op, const jmb_pass *p)
{
    uint64_t work = 0;
    uint32_t i = 0;
    do work += jmb_op_work(op + i, p);
    while (++i < op->chain);
    return work;
}

/* Both ways without a branch: states and caches are full of numbers on either side of each. */
static float jmb_f16_to_float(uint32_t h)
{
    uint32_t sign = (h & 0x8000u) << 16, rest = h & 0x7fffu, bits = (rest << 13) + 0x38000000u;
    uint32_t small = jmb_bits_of((float)(int32_t)rest * 5.9604644775390625e-8f); /* rest * 2^-24, exact */
    bits = rest < 0x400u ? small : bits;
    bits |= rest >= 0x7c00u ? 0x7f800000u : 0;
    return jmb_float_of(sign | bits);
}

/* Round to nearest even; overflow gives infinity. */
static uint32_t jmb_float_to_f16(float value)
{
    uint32_t bits = jmb_bits_of(value), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    uint32_t small = jmb_bits_of(jmb_float_of(rest) + 0.5f) - 0x3f000000u; /* subnormal: the adder rounds at 2^-24 */
    uint32_t half = (rest + 0xfffu + (rest >> 13 & 1) - 0x38000000u) >> 13;
    half = rest < 0x38800000u ? small : half;
    half = rest >= 0x477ff000u ? 0x7c00u : half;
    half = rest > 0x7f800000u ? 0x7e00u : half;
    return sign | half;
}

/* One weight of a matrix, as the panels at the top of this file lay it out. */
static float jmb_weight(const jmb_tensor *t, size_t row, size_t col)
{
    const uint8_t *panel = t->data + row / 16 * (size_t)jmb_panel_bytes(t->type, t->cols);
    size_t r = row % 16;
    switch (t->type) {
    case JMB_F32: return jmb_load_f32(panel + (col * 16 + r) * 4);
    case JMB_F16: return jmb_f16_to_float(jmb_load_u16(panel + (col / 2 * 32 + r * 2 + col % 2) * 2));
    case JMB_BF16: return jmb_float_of(jmb_load_u16(panel + (col / 2 * 32 + r * 2 + col % 2) * 2) << 16);
    case JMB_Q4: {
        const uint8_t *scale = panel + jmb_pad64(t->cols) * 8 + (col / 32 * 16 + r) * 2;
        uint32_t pair = panel[col / 32 * 256 + col % 16 / 4 * 64 + r * 4 + col % 4];
        int level = (int)jmb_q4_levels[col % 32 < 16 ? pair & 15 : pair >> 4] - 128;
        return (float)level * jmb_f16_to_float(jmb_load_u16(scale));
    }
    default: {
        const uint8_t *scale = panel + jmb_pad64(t->cols) * 16 + (col / 64 * 16 + r) * 2;
        int code = (int)panel[col / 4 * 64 + r * 4 + col % 4] - 128;
        return (float)code * jmb_f16_to_float(jmb_load_u16(scale));
    }
    }
}

static void jmb_run_embed(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    uint32_t pieces = jmb_embed_pieces(op), row = task / pieces;
    float *out = jmb_row(p, &op->out[0], row);
    const jmb_span *span = jmb_span_of(p, row);
    size_t token = span->session ? (size_t)span->tokens[row - span->first] : 0, width = op->out[0].width, i;
    size_t first = (size_t)(task % pieces) * JMB_EMBED, stop = first + JMB_EMBED;
    if (stop > op->out[0].stride) stop = op->out[0].stride;
    for (i = first; i < stop; i++) out[i] = i < width ? jmb_weight(op->w[0], token, i) : 0;
    if (op->out[1].width) memcpy(jmb_row(p, &op->out[1], row) + first, out + first, (stop - first) * sizeof *out);
}

static void jmb_run_beside(const jmb_pass *p, const jmb_op *op, uint32_t row)
{
    float *out = jmb_row(p, &op->out[0], row);
    memcpy(out, jmb_row(p, &op->in, row), op->in.width * sizeof *out);
    memcpy(out + op->in.width, jmb_row(p, &op->out[1], row), op->out[1].width * sizeof *out);
}

/* Counting sort of the rows' choices by expert. */
static void jmb_run_group(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    const jmb_routing *r = &p->routing;
    uint32_t experts = op->block->experts, n = p->rows * op->block->top_k, i;
    (void)task;
    memset(r->start, 0, (experts + 1) * sizeof *r->start);
    for (i = 0; i < n; i++) r->start[r->expert[i] + 1]++;
    for (i = 0; i < experts; i++) r->start[i + 1] += r->start[i];
    for (i = 0; i < n; i++) {
        int32_t at = r->start[r->expert[i]]++;
        r->row[at] = (int32_t)(i / op->block->top_k);
        r->place[i] = at;
    }
    for (i = experts; i > 0; i--) r->start[i] = r->start[i - 1];
    r->start[0] = 0;
    for (i = 0, r->used[0] = 0; i < experts; i++)
        if (r->start[i + 1] > r->start[i]) r->used[++r->used[0]] = (int32_t)i;
}

/* One piece of a mark: of the state, then the logits. */
static void jmb_run_keep(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    uint32_t pieces = jmb_keep_pieces(op), marks = task / pieces;
    size_t at = (size_t)(task % pieces) * JMB_KEEP, state = (size_t)op->state_at, all = state + op->in.width;
    size_t stop = all - at < JMB_KEEP ? all : at + JMB_KEEP, middle = state < at ? at : state < stop ? state : stop;
    const jmb_span *span = p->spans;
    while (!span->mark || marks--) span++;
    if (!span->session) return;
    if (at < middle) memcpy(span->mark->state + at, span->state + at, (middle - at) * sizeof(float));
    if (middle < stop)
        memcpy(span->mark->logits + middle - state, span->logits + middle - state, (stop - middle) * sizeof(float));
}

typedef void (*jmb_run_fn)(const jmb_pass *p, const jmb_op *op, uint32_t task);

/* The kernels of one instruction set. */
typedef struct jmb_kernels {
    const char *name;
    jmb_run_fn run[JMB_OP_COUNT];
    void (*exp)(float *values, size_t count); /* in place */
    float (*code)(const float *x, size_t count, int8_t *codes); /* q8: `count` up to 16 codes; returns their scale */
} jmb_kernels;

/* The passes: this file includes itself once for each instruction set, and the code between the next
 * #else and its #endif is compiled under that set's name suffix and target attribute. */
#define JMB_JOIN2(a, b) a##b
#define JMB_JOIN(a, b) JMB_JOIN2(a, b)
#define JMB_K(name) JMB_JOIN(name, JMB_SUFFIX)

#ifndef JMB_PLAIN_TARGET /* tests take the sanitizers off plain C by it */
#define JMB_PLAIN_TARGET
#endif
#define JMB_PASS 1
#define JMB_SUFFIX _scalar
#define JMB_PASS_NAME "scalar"
#define JMB_PASS_TARGET JMB_PLAIN_TARGET
#include JAMBA_HEADER_FILE
#undef JMB_PASS
#undef JMB_SUFFIX
#undef JMB_PASS_NAME
#undef JMB_PASS_TARGET

#if JMB_X86_KERNELS
#define JMB_PASS 2
#define JMB_SUFFIX _avx2
#define JMB_PASS_NAME "avx2"
#define JMB_PASS_TARGET JMB_TARGET("avx2,fma,f16c")
#include JAMBA_HEADER_FILE
#undef JMB_PASS
#undef JMB_SUFFIX
#undef JMB_PASS_NAME
#undef JMB_PASS_TARGET

#if JMB_AVXVNNI_KERNELS
#define JMB_PASS 8
#define JMB_SUFFIX _avxvnni
#define JMB_PASS_NAME "avx-vnni"
#define JMB_PASS_TARGET JMB_TARGET("avx2,fma,f16c,avxvnni")
#include JAMBA_HEADER_FILE
#undef JMB_PASS
#undef JMB_SUFFIX
#undef JMB_PASS_NAME
#undef JMB_PASS_TARGET
#endif

#define JMB_PASS 3
#define JMB_SUFFIX _avx512
#define JMB_PASS_NAME "avx512"
#define JMB_PASS_TARGET JMB_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#include JAMBA_HEADER_FILE
#undef JMB_PASS
#undef JMB_SUFFIX
#undef JMB_PASS_NAME
#undef JMB_PASS_TARGET
#endif

#if JMB_NEON_KERNELS
#define JMB_PASS 4
#define JMB_SUFFIX _neon
#define JMB_PASS_NAME "neon"
#define JMB_PASS_TARGET
#include JAMBA_HEADER_FILE
#undef JMB_PASS
#undef JMB_SUFFIX
#undef JMB_PASS_NAME
#undef JMB_PASS_TARGET

#define JMB_PASS 5
#define JMB_SUFFIX _dotprod
#define JMB_PASS_NAME "neon-dotprod"
#if defined(__clang__)
#define JMB_PASS_TARGET JMB_TARGET("dotprod")
#else
#define JMB_PASS_TARGET JMB_TARGET("arch=armv8.2-a+dotprod")
#endif
#include JAMBA_HEADER_FILE
#undef JMB_PASS
#undef JMB_SUFFIX
#undef JMB_PASS_NAME
#undef JMB_PASS_TARGET
#endif

#if JMB_I8MM_KERNELS
#define JMB_PASS 6
#define JMB_SUFFIX _i8mm
#define JMB_PASS_NAME "neon-i8mm"
#if defined(__clang__)
#define JMB_PASS_TARGET JMB_TARGET("i8mm")
#else
#define JMB_PASS_TARGET JMB_TARGET("arch=armv8.2-a+i8mm")
#endif
#include JAMBA_HEADER_FILE
#undef JMB_PASS
#undef JMB_SUFFIX
#undef JMB_PASS_NAME
#undef JMB_PASS_TARGET
#endif

#if JMB_WASM_KERNELS
#define JMB_PASS 7
#define JMB_SUFFIX _wasm
#define JMB_PASS_NAME "wasm-simd"
#define JMB_PASS_TARGET
#include JAMBA_HEADER_FILE
#undef JMB_PASS
#undef JMB_SUFFIX
#undef JMB_PASS_NAME
#undef JMB_PASS_TARGET
#endif

#else /* JMB_PASS */

/* ===========================================================================================
 * >>lanes - sixteen floats as one value, for each instruction set
 *
 * v16 is one AVX-512 register, two AVX registers, four of NEON or WebAssembly, or a plain array. Every
 * operation gives the same bits in each: IEEE single precision, nearest even. max and min are
 * (a > b ? a : b) and (a < b ? a : b), so that NaN takes the second operand everywhere. v_raise(a, n) adds the
 * low bits of n to the exponent of a. v_swap(a, d) exchanges lanes i and i ^ d, of which a sum over lanes needs
 * those that come to 0..d-1.
 * =========================================================================================== */

/* Plain C leaves inlining to the compiler: forced, it would take most of this file's compile time. So do builds that
 * do not optimise: each inlined function would add its own variables to the caller's stack. */
#undef JMB_FN
#if JMB_PASS == 1 || ((defined(__GNUC__) || defined(__clang__)) && !defined(__OPTIMIZE__))
#define JMB_FN static JMB_UNUSED JMB_PASS_TARGET
#else
#define JMB_FN JMB_INLINE JMB_PASS_TARGET
#endif
#define JMB_KERNEL static JMB_PASS_TARGET

#define v16 JMB_K(jmb_v16)
#define vi16 JMB_K(jmb_vi16)
#define v_set1 JMB_K(jmb_v_set1)
#define v_load JMB_K(jmb_v_load)
#define v_store JMB_K(jmb_v_store)
#define v_load_le JMB_K(jmb_v_load_le)
#define v_load_f16 JMB_K(jmb_v_load_f16)
#define v_pair_f16 JMB_K(jmb_v_pair_f16)
#define v_pair_bf16 JMB_K(jmb_v_pair_bf16)
#define v_add JMB_K(jmb_v_add)
#define v_sub JMB_K(jmb_v_sub)
#define v_mul JMB_K(jmb_v_mul)
#define v_div JMB_K(jmb_v_div)
#define v_sqrt JMB_K(jmb_v_sqrt)
#define v_max JMB_K(jmb_v_max)
#define v_min JMB_K(jmb_v_min)
#define v_fma JMB_K(jmb_v_fma)
#define v_fnma JMB_K(jmb_v_fnma)
#define v_round JMB_K(jmb_v_round)
#define v_pow2 JMB_K(jmb_v_pow2)
#define v_ldexp JMB_K(jmb_v_ldexp)
#define v_raise JMB_K(jmb_v_raise)
#define v_swap JMB_K(jmb_v_swap)
#define v_select_gt JMB_K(jmb_v_select_gt)
#define v_store_i8 JMB_K(jmb_v_store_i8)
#define v_load_i8 JMB_K(jmb_v_load_i8)
#define v_prefetch JMB_K(jmb_v_prefetch)
#define vb64 JMB_K(jmb_vb64)
#define vb_load JMB_K(jmb_vb_load)
#define vb_levels JMB_K(jmb_vb_levels)
#define vi_start JMB_K(jmb_vi_start)
#define vi_dot JMB_K(jmb_vi_dot)
#define vi_float JMB_K(jmb_vi_float)

/* Loops over rows of a tile are unrolled, so that sums stay in registers; plain C keeps its loops, and so do builds
 * with sanitizers that define JMB_UNROLLED as nothing: they would take minutes. */
#if defined(__clang__)
#define JMB_ROLLED _Pragma("clang loop unroll(disable)")
#elif defined(__GNUC__)
#define JMB_ROLLED _Pragma("GCC unroll 1")
#else
#define JMB_ROLLED
#endif
#if !defined(JMB_UNROLLED)
#if defined(__clang__)
#define JMB_UNROLLED _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define JMB_UNROLLED _Pragma("GCC unroll 16")
#else
#define JMB_UNROLLED
#endif
#endif
#undef JMB_UNROLL
#if JMB_PASS == 1
#define JMB_UNROLL JMB_ROLLED
#else
#define JMB_UNROLL JMB_UNROLLED
#endif

/* Asks for a line that will be read soon; any address will do. */
JMB_FN void v_prefetch(const uint8_t *p)
{
#if JMB_PASS == 1
    (void)p;
#elif JMB_X86_KERNELS
    _mm_prefetch((const char *)p, _MM_HINT_T0);
#else
    __builtin_prefetch(p);
#endif
}

/* Sets with four floats in a register: the same for each quarter of the lanes. */
#define JMB_EACH(type, expression)                               \
    type r;                                                      \
    int i;                                                       \
    JMB_UNROLLED for (i = 0; i < 4; i++) r.q[i] = (expression);  \
    return r

#if JMB_PASS == 3

typedef __m512 v16;
typedef __m512i vi16;
typedef __m512i vb64;

/* Zero-masked forms, all lanes on: gcc 12 warns of its own undefined source operand in the plain ones. */
#define JMB_ALL ((__mmask16)-1)

JMB_FN v16 v_set1(float x) { return _mm512_set1_ps(x); }
JMB_FN v16 v_load(const float *p) { return _mm512_loadu_ps(p); }
JMB_FN void v_store(float *p, v16 a) { _mm512_storeu_ps(p, a); }
JMB_FN v16 v_load_f16(const uint8_t *p)
{
    return _mm512_maskz_cvtph_ps(JMB_ALL, _mm256_loadu_si256((const __m256i *)(const void *)p));
}
JMB_FN v16 v_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
JMB_FN v16 v_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
JMB_FN v16 v_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
JMB_FN v16 v_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
JMB_FN v16 v_sqrt(v16 a) { return _mm512_maskz_sqrt_ps(JMB_ALL, a); }
JMB_FN v16 v_max(v16 a, v16 b) { return _mm512_maskz_max_ps(JMB_ALL, a, b); }
JMB_FN v16 v_min(v16 a, v16 b) { return _mm512_maskz_min_ps(JMB_ALL, a, b); }
JMB_FN v16 v_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
JMB_FN v16 v_fnma(v16 a, v16 b, v16 c) { return _mm512_fnmadd_ps(a, b, c); }
JMB_FN v16 v_round(v16 a)
{
#if defined(__OPTIMIZE__) || defined(__clang__)
    return _mm512_maskz_roundscale_ps(JMB_ALL, a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else /* gcc's macro form of -O0 makes it warn of its own mask */
    float f[16];
    _mm512_storeu_ps(f, a);
    _mm256_storeu_ps(f, _mm256_round_ps(_mm256_loadu_ps(f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm256_storeu_ps(f + 8, _mm256_round_ps(_mm256_loadu_ps(f + 8), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    return _mm512_loadu_ps(f);
#endif
}
JMB_FN v16 v_pow2(v16 n)
{
    __m512i e = _mm512_add_epi32(_mm512_maskz_cvtps_epi32(JMB_ALL, n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(JMB_ALL, e, 23));
}
JMB_FN v16 v_raise(v16 a, v16 n)
{
    __m512i e = _mm512_maskz_slli_epi32(JMB_ALL, _mm512_castps_si512(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), e));
}
JMB_FN v16 v_ldexp(v16 y, v16 n) { return _mm512_maskz_scalef_ps(JMB_ALL, y, n); }
JMB_FN v16 v_swap(v16 a, int distance)
{
    switch (distance) {
    case 8: return _mm512_maskz_shuffle_f32x4(JMB_ALL, a, a, 0x4e);
    case 4: return _mm512_maskz_shuffle_f32x4(JMB_ALL, a, a, 0xb1);
    case 2: return _mm512_maskz_permute_ps(JMB_ALL, a, 0x4e);
    default: return _mm512_maskz_permute_ps(JMB_ALL, a, 0xb1);
    }
}
JMB_FN v16 v_select_gt(v16 a, v16 b, v16 x, v16 y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
}
JMB_FN void v_store_i8(int8_t *p, v16 a)
{
    _mm_storeu_si128((__m128i *)(void *)p, _mm512_maskz_cvtepi32_epi8(JMB_ALL, _mm512_maskz_cvtps_epi32(JMB_ALL, a)));
}
JMB_FN v16 v_load_i8(const int8_t *p)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm512_maskz_cvtepi32_ps(JMB_ALL, _mm512_maskz_cvtepi8_epi32(JMB_ALL, bytes));
}
JMB_FN void v_pair_bf16(const uint8_t *p, v16 *even, v16 *odd)
{
    __m512i both = _mm512_loadu_si512(p);
    *even = _mm512_castsi512_ps(_mm512_maskz_slli_epi32(JMB_ALL, both, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000u)));
}
JMB_FN void v_pair_f16(const uint8_t *p, v16 *even, v16 *odd)
{
    __m512i both = _mm512_loadu_si512(p), high = _mm512_maskz_srli_epi32(JMB_ALL, both, 16);
    *even = _mm512_maskz_cvtph_ps(JMB_ALL, _mm512_maskz_cvtepi32_epi16(JMB_ALL, both));
    *odd = _mm512_maskz_cvtph_ps(JMB_ALL, _mm512_maskz_cvtepi32_epi16(JMB_ALL, high));
}
/* vpdpbusd takes the file's offset bytes as they are: start at -128 times the sum of the codes. */
JMB_FN vi16 vi_start(int32_t sum) { return _mm512_set1_epi32(-128 * sum); }
JMB_FN vi16 vi_dot(vi16 acc, vb64 w, const int8_t *a)
{
    int32_t four;
    memcpy(&four, a, 4);
    return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(four));
}
JMB_FN vb64 vb_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
JMB_FN void vb_levels(const uint8_t *p, vb64 *low, vb64 *high)
{
    const __m128i levels = _mm_loadu_si128((const __m128i *)(const void *)jmb_q4_levels);
    __m512i table = _mm512_maskz_broadcast_i32x4(JMB_ALL, levels);
    __m512i pairs = _mm512_loadu_si512(p), half = _mm512_set1_epi8(15);
    *low = _mm512_shuffle_epi8(table, _mm512_and_si512(pairs, half));
    *high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(pairs, 4), half));
}
JMB_FN v16 vi_float(vi16 a) { return _mm512_maskz_cvtepi32_ps(JMB_ALL, a); }

#elif JMB_PASS == 2 || JMB_PASS == 8

typedef struct v16 {
    __m256 lo, hi;
} v16;
typedef struct vi16 {
    __m256i lo, hi;
} vi16;
typedef vi16 vb64;

JMB_FN v16 JMB_K(jmb_v_make)(__m256 lo, __m256 hi)
{
    v16 v;
    v.lo = lo;
    v.hi = hi;
    return v;
}
#define v_make JMB_K(jmb_v_make)
JMB_FN v16 v_set1(float x) { return v_make(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
JMB_FN v16 v_load(const float *p) { return v_make(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
JMB_FN void v_store(float *p, v16 a)
{
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
JMB_FN v16 v_load_f16(const uint8_t *p)
{
    return v_make(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p)),
        _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 16))));
}
JMB_FN v16 v_add(v16 a, v16 b) { return v_make(_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)); }
JMB_FN v16 v_sub(v16 a, v16 b) { return v_make(_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)); }
JMB_FN v16 v_mul(v16 a, v16 b) { return v_make(_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)); }
JMB_FN v16 v_div(v16 a, v16 b) { return v_make(_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)); }
JMB_FN v16 v_sqrt(v16 a) { return v_make(_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)); }
JMB_FN v16 v_max(v16 a, v16 b) { return v_make(_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)); }
JMB_FN v16 v_min(v16 a, v16 b) { return v_make(_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)); }
JMB_FN v16 v_fma(v16 a, v16 b, v16 c)
{
    return v_make(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi));
}
JMB_FN v16 v_fnma(v16 a, v16 b, v16 c)
{
    return v_make(_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi));
}
JMB_FN v16 v_round(v16 a)
{
    return v_make(_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
        _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
JMB_FN v16 v_pow2(v16 n)
{
    __m256i bias = _mm256_set1_epi32(127);
    __m256i lo = _mm256_add_epi32(_mm256_cvtps_epi32(n.lo), bias);
    __m256i hi = _mm256_add_epi32(_mm256_cvtps_epi32(n.hi), bias);
    return v_make(_mm256_castsi256_ps(_mm256_slli_epi32(lo, 23)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 23)));
}
JMB_FN __m256 JMB_K(jmb_v_raise8)(__m256 a, __m256 n)
{
    __m256i e = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), e));
}
JMB_FN v16 v_raise(v16 a, v16 n)
{
    return v_make(JMB_K(jmb_v_raise8)(a.lo, n.lo), JMB_K(jmb_v_raise8)(a.hi, n.hi));
}
JMB_FN v16 v_swap(v16 a, int distance)
{
    switch (distance) {
    case 8: return v_make(a.hi, a.lo);
    case 4: return v_make(_mm256_permute2f128_ps(a.lo, a.lo, 1), _mm256_permute2f128_ps(a.hi, a.hi, 1));
    case 2: return v_make(_mm256_permute_ps(a.lo, 0x4e), _mm256_permute_ps(a.hi, 0x4e));
    default: return v_make(_mm256_permute_ps(a.lo, 0xb1), _mm256_permute_ps(a.hi, 0xb1));
    }
}
JMB_FN v16 v_select_gt(v16 a, v16 b, v16 x, v16 y)
{
    return v_make(_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ)),
        _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ)));
}
JMB_FN void v_store_i8(int8_t *p, v16 a)
{
    __m256i w = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
    w = _mm256_permute4x64_epi64(w, 0xd8);
    _mm_storeu_si128((__m128i *)(void *)p, _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
}
JMB_FN v16 v_load_i8(const int8_t *p)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)p);
    return v_make(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))));
}
JMB_FN void v_pair_bf16(const uint8_t *p, v16 *even, v16 *odd)
{
    __m256i lo = _mm256_loadu_si256((const __m256i *)(const void *)p);
    __m256i hi = _mm256_loadu_si256((const __m256i *)(const void *)(p + 32));
    __m256i top = _mm256_set1_epi32((int)0xffff0000u);
    *even = v_make(_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16)));
    *odd = v_make(_mm256_castsi256_ps(_mm256_and_si256(lo, top)), _mm256_castsi256_ps(_mm256_and_si256(hi, top)));
}
/* Packs the low (shift 0) or high (shift 16) halves of 16 words and widens them. */
JMB_FN v16 JMB_K(jmb_v_half_f16)(__m256i lo, __m256i hi)
{
    __m256i w = _mm256_permute4x64_epi64(_mm256_packus_epi32(lo, hi), 0xd8);
    return v_make(_mm256_cvtph_ps(_mm256_castsi256_si128(w)), _mm256_cvtph_ps(_mm256_extracti128_si256(w, 1)));
}
JMB_FN void v_pair_f16(const uint8_t *p, v16 *even, v16 *odd)
{
    __m256i lo = _mm256_loadu_si256((const __m256i *)(const void *)p);
    __m256i hi = _mm256_loadu_si256((const __m256i *)(const void *)(p + 32));
    __m256i low = _mm256_set1_epi32(0xffff);
    *even = JMB_K(jmb_v_half_f16)(_mm256_and_si256(lo, low), _mm256_and_si256(hi, low));
    *odd = JMB_K(jmb_v_half_f16)(_mm256_srli_epi32(lo, 16), _mm256_srli_epi32(hi, 16));
}
#if JMB_PASS == 8 /* as AVX-512 does */
JMB_FN vi16 vi_start(int32_t sum)
{
    vi16 v;
    v.lo = v.hi = _mm256_set1_epi32(-128 * sum);
    return v;
}
JMB_FN __m256i JMB_K(jmb_vi_dot8)(__m256i acc, __m256i w, __m256i a) { return _mm256_dpbusd_avx_epi32(acc, w, a); }
#else
JMB_FN vi16 vi_start(int32_t sum)
{
    vi16 v;
    (void)sum;
    v.lo = v.hi = _mm256_setzero_si256();
    return v;
}
/* maddubs saturates at 32767: |w| <= 128 and |a| <= 127 keep two products below it. */
JMB_FN __m256i JMB_K(jmb_vi_dot8)(__m256i acc, __m256i w, __m256i a)
{
    __m256i s = _mm256_xor_si256(w, _mm256_set1_epi8((char)-128));
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(s), _mm256_sign_epi8(a, s));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif
JMB_FN vi16 vi_dot(vi16 acc, vb64 w, const int8_t *a)
{
    int32_t four;
    __m256i all;
    memcpy(&four, a, 4);
    all = _mm256_set1_epi32(four);
    acc.lo = JMB_K(jmb_vi_dot8)(acc.lo, w.lo, all);
    acc.hi = JMB_K(jmb_vi_dot8)(acc.hi, w.hi, all);
    return acc;
}
JMB_FN vb64 vb_load(const uint8_t *p)
{
    vb64 b;
    b.lo = _mm256_loadu_si256((const __m256i *)(const void *)p);
    b.hi = _mm256_loadu_si256((const __m256i *)(const void *)(p + 32));
    return b;
}
JMB_FN void vb_levels(const uint8_t *p, vb64 *low, vb64 *high)
{
    const __m128i levels = _mm_loadu_si128((const __m128i *)(const void *)jmb_q4_levels);
    __m256i table = _mm256_broadcastsi128_si256(levels), half = _mm256_set1_epi8(15);
    vb64 pairs = vb_load(p);
    low->lo = _mm256_shuffle_epi8(table, _mm256_and_si256(pairs.lo, half));
    low->hi = _mm256_shuffle_epi8(table, _mm256_and_si256(pairs.hi, half));
    high->lo = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(pairs.lo, 4), half));
    high->hi = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(pairs.hi, 4), half));
}
JMB_FN v16 vi_float(vi16 a) { return v_make(_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)); }
#undef v_make

#elif JMB_PASS == 4 || JMB_PASS == 5 || JMB_PASS == 6

typedef struct v16 {
    float32x4_t q[4];
} v16;
typedef struct vi16 {
    int32x4_t q[4];
} vi16;
typedef struct vb64 {
#if JMB_PASS == 6
    uint8x16_t q[4];
#else
    int8x16_t q[4]; /* offset taken off */
#endif
} vb64;

JMB_FN v16 v_set1(float x) { JMB_EACH(v16, vdupq_n_f32(x)); }
JMB_FN v16 v_load(const float *p) { JMB_EACH(v16, vld1q_f32(p + 4 * i)); }
JMB_FN void v_store(float *p, v16 a)
{
    int i;
    JMB_UNROLLED
    for (i = 0; i < 4; i++) vst1q_f32(p + 4 * i, a.q[i]);
}
JMB_FN v16 v_load_f16(const uint8_t *p)
{
    JMB_EACH(v16, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)(const void *)(p + 8 * i)))));
}
JMB_FN v16 v_add(v16 a, v16 b) { JMB_EACH(v16, vaddq_f32(a.q[i], b.q[i])); }
JMB_FN v16 v_sub(v16 a, v16 b) { JMB_EACH(v16, vsubq_f32(a.q[i], b.q[i])); }
JMB_FN v16 v_mul(v16 a, v16 b) { JMB_EACH(v16, vmulq_f32(a.q[i], b.q[i])); }
JMB_FN v16 v_div(v16 a, v16 b) { JMB_EACH(v16, vdivq_f32(a.q[i], b.q[i])); }
JMB_FN v16 v_sqrt(v16 a) { JMB_EACH(v16, vsqrtq_f32(a.q[i])); }
JMB_FN v16 v_max(v16 a, v16 b) { JMB_EACH(v16, vbslq_f32(vcgtq_f32(a.q[i], b.q[i]), a.q[i], b.q[i])); }
JMB_FN v16 v_min(v16 a, v16 b) { JMB_EACH(v16, vbslq_f32(vcltq_f32(a.q[i], b.q[i]), a.q[i], b.q[i])); }
JMB_FN v16 v_fma(v16 a, v16 b, v16 c) { JMB_EACH(v16, vfmaq_f32(c.q[i], a.q[i], b.q[i])); }
JMB_FN v16 v_fnma(v16 a, v16 b, v16 c) { JMB_EACH(v16, vfmsq_f32(c.q[i], a.q[i], b.q[i])); }
JMB_FN v16 v_round(v16 a) { JMB_EACH(v16, vrndnq_f32(a.q[i])); }
JMB_FN v16 v_pow2(v16 n)
{
    JMB_EACH(v16, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.q[i]), vdupq_n_s32(127)), 23)));
}
JMB_FN v16 v_raise(v16 a, v16 n)
{
    JMB_EACH(v16, vreinterpretq_f32_s32(vaddq_s32(
        vreinterpretq_s32_f32(a.q[i]), vshlq_n_s32(vreinterpretq_s32_f32(n.q[i]), 23))));
}
JMB_FN v16 v_swap(v16 a, int distance)
{
    JMB_EACH(v16, distance >= 4 ? a.q[i ^ (distance / 4)] :
        distance == 2 ? vextq_f32(a.q[i], a.q[i], 2) : vrev64q_f32(a.q[i]));
}
JMB_FN v16 v_select_gt(v16 a, v16 b, v16 x, v16 y)
{
    JMB_EACH(v16, vbslq_f32(vcgtq_f32(a.q[i], b.q[i]), x.q[i], y.q[i]));
}
JMB_FN void v_store_i8(int8_t *p, v16 a)
{
    int16x8_t low = vcombine_s16(vmovn_s32(vcvtq_s32_f32(a.q[0])), vmovn_s32(vcvtq_s32_f32(a.q[1])));
    int16x8_t high = vcombine_s16(vmovn_s32(vcvtq_s32_f32(a.q[2])), vmovn_s32(vcvtq_s32_f32(a.q[3])));
    vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}
JMB_FN v16 v_load_i8(const int8_t *p)
{
    int16x8_t low = vmovl_s8(vld1_s8(p)), high = vmovl_s8(vld1_s8(p + 8));
    JMB_EACH(v16, vcvtq_f32_s32(vmovl_s16(i < 2 ? (i ? vget_high_s16(low) : vget_low_s16(low))
                                               : (i & 1 ? vget_high_s16(high) : vget_low_s16(high)))));
}
JMB_FN void v_pair_bf16(const uint8_t *p, v16 *even, v16 *odd)
{
    int i;
    JMB_UNROLLED
    for (i = 0; i < 4; i++) {
        uint32x4_t both = vreinterpretq_u32_u8(vld1q_u8(p + 16 * i));
        even->q[i] = vreinterpretq_f32_u32(vshlq_n_u32(both, 16));
        odd->q[i] = vreinterpretq_f32_u32(vandq_u32(both, vdupq_n_u32(0xffff0000u)));
    }
}
JMB_FN void v_pair_f16(const uint8_t *p, v16 *even, v16 *odd)
{
    int i;
    JMB_UNROLLED
    for (i = 0; i < 4; i++) {
        uint32x4_t both = vreinterpretq_u32_u8(vld1q_u8(p + 16 * i));
        even->q[i] = vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(both)));
        odd->q[i] = vcvt_f32_f16(vreinterpret_f16_u16(vshrn_n_u32(both, 16)));
    }
}
#if JMB_PASS == 6
/* usdot and usmmla take the file's offset bytes as they are: start at -128 times the sum of the codes. */
JMB_FN vi16 vi_start(int32_t sum) { JMB_EACH(vi16, vdupq_n_s32(-128 * sum)); }
JMB_FN vi16 vi_dot(vi16 acc, vb64 w, const int8_t *a)
{
    int32_t word;
    memcpy(&word, a, 4);
    JMB_EACH(vi16, vusdotq_s32(acc.q[i], w.q[i], vreinterpretq_s8_s32(vdupq_n_s32(word))));
}
JMB_FN vb64 vb_load(const uint8_t *p) { JMB_EACH(vb64, vld1q_u8(p + 16 * i)); }
JMB_FN void vb_levels(const uint8_t *p, vb64 *low, vb64 *high)
{
    uint8x16_t table = vld1q_u8(jmb_q4_levels);
    int i;
    JMB_UNROLLED
    for (i = 0; i < 4; i++) {
        uint8x16_t pairs = vld1q_u8(p + 16 * i);
        low->q[i] = vqtbl1q_u8(table, vandq_u8(pairs, vdupq_n_u8(15)));
        high->q[i] = vqtbl1q_u8(table, vshrq_n_u8(pairs, 4));
    }
}
/* The sums of two rows x and y at once: q[i] is x and y of panel row 2 i, then of 2 i + 1. */
typedef struct JMB_K(jmb_vi_pair) {
    int32x4_t q[8];
} JMB_K(jmb_vi_pair);
JMB_FN JMB_K(jmb_vi_pair) JMB_K(jmb_pair_start)(int32_t sum_x, int32_t sum_y)
{
    JMB_K(jmb_vi_pair) r;
    int32x4_t x = vdupq_n_s32(-128 * sum_x), y = vdupq_n_s32(-128 * sum_y);
    int i;
    JMB_UNROLLED
    for (i = 0; i < 8; i++) r.q[i] = vzip1q_s32(x, y);
    return r;
}
/* Eight k: w holds the first four, v the others. */
JMB_FN JMB_K(jmb_vi_pair)
    JMB_K(jmb_pair_dot)(JMB_K(jmb_vi_pair) acc, vb64 w, vb64 v, const int8_t *x, const int8_t *y)
{
    int8x16_t both = vcombine_s8(vld1_s8(x), vld1_s8(y));
    int i;
    JMB_UNROLLED
    for (i = 0; i < 4; i++) {
        uint32x4_t first = vreinterpretq_u32_u8(w.q[i]), second = vreinterpretq_u32_u8(v.q[i]);
        acc.q[2 * i] = vusmmlaq_s32(acc.q[2 * i], vreinterpretq_u8_u32(vzip1q_u32(first, second)), both);
        acc.q[2 * i + 1] = vusmmlaq_s32(acc.q[2 * i + 1], vreinterpretq_u8_u32(vzip2q_u32(first, second)), both);
    }
    return acc;
}
JMB_FN vi16 JMB_K(jmb_pair_x)(JMB_K(jmb_vi_pair) p) { JMB_EACH(vi16, vuzp1q_s32(p.q[2 * i], p.q[2 * i + 1])); }
JMB_FN vi16 JMB_K(jmb_pair_y)(JMB_K(jmb_vi_pair) p) { JMB_EACH(vi16, vuzp2q_s32(p.q[2 * i], p.q[2 * i + 1])); }
#else
JMB_FN vi16 vi_start(int32_t sum)
{
    (void)sum;
    JMB_EACH(vi16, vdupq_n_s32(0));
}
JMB_FN vi16 vi_dot(vi16 acc, vb64 w, const int8_t *a)
{
    int32_t word;
    int8x16_t four;
    int i;
    memcpy(&word, a, 4);
    four = vreinterpretq_s8_s32(vdupq_n_s32(word));
    JMB_UNROLLED
    for (i = 0; i < 4; i++) {
#if JMB_PASS == 5
        acc.q[i] = vdotq_s32(acc.q[i], w.q[i], four);
#else
        int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(w.q[i]), vget_low_s8(four)));
        int32x4_t high = vpaddlq_s16(vmull_high_s8(w.q[i], four));
        acc.q[i] = vaddq_s32(acc.q[i], vpaddq_s32(low, high));
#endif
    }
    return acc;
}
JMB_FN vb64 vb_load(const uint8_t *p)
{
    JMB_EACH(vb64, vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p + 16 * i), vdupq_n_u8(0x80))));
}
JMB_FN void vb_levels(const uint8_t *p, vb64 *low, vb64 *high)
{
    uint8x16_t table = veorq_u8(vld1q_u8(jmb_q4_levels), vdupq_n_u8(0x80));
    int i;
    JMB_UNROLLED
    for (i = 0; i < 4; i++) {
        uint8x16_t pairs = vld1q_u8(p + 16 * i);
        low->q[i] = vreinterpretq_s8_u8(vqtbl1q_u8(table, vandq_u8(pairs, vdupq_n_u8(15))));
        high->q[i] = vreinterpretq_s8_u8(vqtbl1q_u8(table, vshrq_n_u8(pairs, 4)));
    }
}
#endif
JMB_FN v16 vi_float(vi16 a) { JMB_EACH(v16, vcvtq_f32_s32(a.q[i])); }

#elif JMB_PASS == 7

typedef struct v16 {
    v128_t q[4];
} v16;
typedef struct vi16 {
    v128_t q[4];
} vi16;
typedef struct vb64 {
    v128_t q[4];
} vb64;

JMB_FN v16 v_set1(float x) { JMB_EACH(v16, wasm_f32x4_splat(x)); }
JMB_FN v16 v_load(const float *p) { JMB_EACH(v16, wasm_v128_load(p + 4 * i)); }
JMB_FN void v_store(float *p, v16 a)
{
    int i;
    JMB_UNROLLED
    for (i = 0; i < 4; i++) wasm_v128_store(p + 4 * i, a.q[i]);
}
/* Halves in 32-bit lanes. A subnormal is (2^-14 + itself) - 2^-14; infinity and NaN need all exponent bits. */
JMB_FN v128_t JMB_K(jmb_v_half)(v128_t h)
{
    v128_t rest = wasm_i32x4_shl(wasm_v128_and(h, wasm_i32x4_const_splat(0x7fff)), 13);
    v128_t sign = wasm_i32x4_shl(wasm_v128_andnot(h, wasm_i32x4_const_splat(0x7fff)), 16);
    v128_t normal = wasm_i32x4_add(rest, wasm_i32x4_const_splat(112 << 23)), least = wasm_i32x4_const_splat(113 << 23);
    v128_t subnormal = wasm_f32x4_sub(wasm_i32x4_add(rest, least), least);
    v128_t f = wasm_v128_bitselect(subnormal, normal, wasm_i32x4_lt(normal, least));
    v128_t special = wasm_i32x4_ge(normal, wasm_i32x4_const_splat(143 << 23));
    f = wasm_v128_or(f, wasm_v128_and(special, wasm_i32x4_const_splat(0x7f800000)));
    return wasm_v128_or(f, sign);
}
JMB_FN v16 v_load_f16(const uint8_t *p) { JMB_EACH(v16, JMB_K(jmb_v_half)(wasm_u32x4_load16x4(p + 8 * i))); }
JMB_FN v16 v_add(v16 a, v16 b) { JMB_EACH(v16, wasm_f32x4_add(a.q[i], b.q[i])); }
JMB_FN v16 v_sub(v16 a, v16 b) { JMB_EACH(v16, wasm_f32x4_sub(a.q[i], b.q[i])); }
JMB_FN v16 v_mul(v16 a, v16 b) { JMB_EACH(v16, wasm_f32x4_mul(a.q[i], b.q[i])); }
JMB_FN v16 v_div(v16 a, v16 b) { JMB_EACH(v16, wasm_f32x4_div(a.q[i], b.q[i])); }
JMB_FN v16 v_sqrt(v16 a) { JMB_EACH(v16, wasm_f32x4_sqrt(a.q[i])); }
JMB_FN v16 v_load_i8(const int8_t *p)
{
    JMB_EACH(v16, wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(
        wasm_i16x8_extend_low_i8x16(wasm_v128_load32_zero(p + 4 * i)))));
}
/* pmax(x, y) is (x < y ? y : x), pmin(x, y) is (y < x ? y : x). */
JMB_FN v16 v_max(v16 a, v16 b) { JMB_EACH(v16, wasm_f32x4_pmax(b.q[i], a.q[i])); }
JMB_FN v16 v_min(v16 a, v16 b) { JMB_EACH(v16, wasm_f32x4_pmin(b.q[i], a.q[i])); }
JMB_FN v128_t JMB_K(jmb_v_low)(v128_t a) { return wasm_f64x2_promote_low_f32x4(a); }
JMB_FN v128_t JMB_K(jmb_v_high)(v128_t a) { return wasm_f64x2_promote_low_f32x4(wasm_i32x4_shuffle(a, a, 2, 3, 2, 3)); }
JMB_FN v128_t JMB_K(jmb_v_join)(v128_t low, v128_t high)
{
    return wasm_i64x2_shuffle(wasm_f32x4_demote_f64x2_zero(low), wasm_f32x4_demote_f64x2_zero(high), 0, 2);
}
/* p + d rounded to odd, so that rounding it again is right: one bit nearer to zero where two-sum says that the sum
 * is past the exact one, then the last bit set where it is not exact. Infinity and NaN have NaN for an error. */
JMB_FN v128_t JMB_K(jmb_add_odd)(v128_t p, v128_t d)
{
    v128_t s = wasm_f64x2_add(p, d), t = wasm_f64x2_sub(s, p);
    v128_t error = wasm_f64x2_add(wasm_f64x2_sub(p, wasm_f64x2_sub(s, t)), wasm_f64x2_sub(d, t));
    v128_t outward = wasm_v128_xor(error, wasm_v128_and(s, wasm_f64x2_const_splat(-0.0)));
    v128_t past = wasm_f64x2_lt(outward, wasm_f64x2_const_splat(0));
    v128_t inexact = wasm_v128_or(past, wasm_f64x2_gt(outward, wasm_f64x2_const_splat(0)));
    return wasm_v128_or(wasm_i64x2_add(s, past), wasm_v128_and(inexact, wasm_i64x2_const_splat(1)));
}
/* Not inlined: it is rare, and v_fma is everywhere. */
static __attribute__((noinline)) v128_t JMB_K(jmb_fma_exact)(v128_t a, v128_t b, v128_t c)
{
    v128_t low = wasm_f64x2_mul(JMB_K(jmb_v_low)(a), JMB_K(jmb_v_low)(b));
    v128_t high = wasm_f64x2_mul(JMB_K(jmb_v_high)(a), JMB_K(jmb_v_high)(b));
    low = JMB_K(jmb_add_odd)(low, JMB_K(jmb_v_low)(c));
    high = JMB_K(jmb_add_odd)(high, JMB_K(jmb_v_high)(c));
    return JMB_K(jmb_v_join)(low, high);
}
/* There is no such instruction. The product of two floats is exact in double; rounding the sum there and once more
 * goes wrong only where that double is half way between two floats. Then its last 29 bits are 1 0 ... 0 (least[0],
 * signed, finds them moved to the top), or the result is subnormal or the first normal (least[1]: twice its bits,
 * less one, which leaves zero out). If one of the lanes is so, all take the exact form. */
JMB_FN v16 v_fma(v16 a, v16 b, v16 c)
{
    v128_t least[2], sure;
    v16 r;
    int i;
    least[0] = wasm_i32x4_const_splat(0);
    least[1] = wasm_i32x4_const_splat(-1);
    JMB_UNROLLED
    for (i = 0; i < 4; i++) {
        v128_t low = wasm_f64x2_mul(JMB_K(jmb_v_low)(a.q[i]), JMB_K(jmb_v_low)(b.q[i]));
        v128_t high = wasm_f64x2_mul(JMB_K(jmb_v_high)(a.q[i]), JMB_K(jmb_v_high)(b.q[i])), twice;
        low = wasm_f64x2_add(low, JMB_K(jmb_v_low)(c.q[i]));
        high = wasm_f64x2_add(high, JMB_K(jmb_v_high)(c.q[i]));
        r.q[i] = JMB_K(jmb_v_join)(low, high);
        twice = wasm_i32x4_shl(r.q[i], 1);
        least[0] = wasm_i32x4_min(least[0], wasm_i32x4_min(wasm_i64x2_shl(low, 35), wasm_i64x2_shl(high, 35)));
        least[1] = wasm_u32x4_min(least[1], wasm_i32x4_add(twice, wasm_i32x4_const_splat(-1)));
    }
    least[0] = wasm_v128_xor(least[0], wasm_i32x4_const_splat((int)0x80000000u));
    sure = wasm_u32x4_min(least[0], wasm_u32x4_shr(least[1], 24));
    if (wasm_i32x4_all_true(sure)) return r;
    JMB_UNROLLED
    for (i = 0; i < 4; i++) r.q[i] = JMB_K(jmb_fma_exact)(a.q[i], b.q[i], c.q[i]);
    return r;
}
JMB_FN v16 JMB_K(jmb_v_neg)(v16 a) { JMB_EACH(v16, wasm_f32x4_neg(a.q[i])); }
JMB_FN v16 v_fnma(v16 a, v16 b, v16 c) { return v_fma(JMB_K(jmb_v_neg)(a), b, c); }
JMB_FN v16 v_round(v16 a) { JMB_EACH(v16, wasm_f32x4_nearest(a.q[i])); }
/* Whole numbers below 2^22: the last bits of 1.5 * 2^23 + n. The conversion by name saturates, at a price. */
JMB_FN v128_t JMB_K(jmb_v_int)(v128_t n)
{
    return wasm_i32x4_sub(wasm_f32x4_add(n, wasm_f32x4_const_splat(12582912.0f)), wasm_f32x4_const_splat(12582912.0f));
}
JMB_FN v16 v_pow2(v16 n)
{
    JMB_EACH(v16, wasm_i32x4_shl(wasm_i32x4_add(JMB_K(jmb_v_int)(n.q[i]), wasm_i32x4_const_splat(127)), 23));
}
JMB_FN v16 v_raise(v16 a, v16 n) { JMB_EACH(v16, wasm_i32x4_add(a.q[i], wasm_i32x4_shl(n.q[i], 23))); }
JMB_FN v16 v_swap(v16 a, int distance)
{
    JMB_EACH(v16, distance >= 4 ? a.q[i ^ (distance / 4)] :
        distance == 2 ? wasm_i32x4_shuffle(a.q[i], a.q[i], 2, 3, 0, 1) :
        wasm_i32x4_shuffle(a.q[i], a.q[i], 1, 0, 3, 2));
}
JMB_FN v16 v_select_gt(v16 a, v16 b, v16 x, v16 y)
{
    JMB_EACH(v16, wasm_v128_bitselect(x.q[i], y.q[i], wasm_f32x4_gt(a.q[i], b.q[i])));
}
JMB_FN void v_store_i8(int8_t *p, v16 a)
{
    v128_t low = wasm_i16x8_narrow_i32x4(JMB_K(jmb_v_int)(a.q[0]), JMB_K(jmb_v_int)(a.q[1]));
    v128_t high = wasm_i16x8_narrow_i32x4(JMB_K(jmb_v_int)(a.q[2]), JMB_K(jmb_v_int)(a.q[3]));
    wasm_v128_store(p, wasm_i8x16_narrow_i16x8(low, high));
}
JMB_FN void v_pair_bf16(const uint8_t *p, v16 *even, v16 *odd)
{
    int i;
    JMB_UNROLLED
    for (i = 0; i < 4; i++) {
        v128_t both = wasm_v128_load(p + 16 * i);
        even->q[i] = wasm_i32x4_shl(both, 16);
        odd->q[i] = wasm_v128_and(both, wasm_i32x4_const_splat((int)0xffff0000u));
    }
}
JMB_FN void v_pair_f16(const uint8_t *p, v16 *even, v16 *odd)
{
    int i;
    JMB_UNROLLED
    for (i = 0; i < 4; i++) {
        v128_t both = wasm_v128_load(p + 16 * i);
        even->q[i] = JMB_K(jmb_v_half)(wasm_v128_and(both, wasm_i32x4_const_splat(0xffff)));
        odd->q[i] = JMB_K(jmb_v_half)(wasm_u32x4_shr(both, 16));
    }
}
/* The file's offset bytes as they are: start at -128 times the sum of the codes. */
JMB_FN vi16 vi_start(int32_t sum) { JMB_EACH(vi16, wasm_i32x4_splat(-128 * sum)); }
/* Even and odd bytes as 16-bit numbers: both dots of pairs fall into the lane of their row. */
JMB_FN vi16 vi_dot(vi16 acc, vb64 w, const int8_t *a)
{
    v128_t four = wasm_v128_load32_splat(a);
    v128_t even = wasm_i16x8_shr(wasm_i16x8_shl(four, 8), 8), odd = wasm_i16x8_shr(four, 8);
    int i;
    JMB_UNROLLED
    for (i = 0; i < 4; i++) {
        v128_t w_even = wasm_v128_and(w.q[i], wasm_i16x8_const_splat(255)), w_odd = wasm_u16x8_shr(w.q[i], 8);
        acc.q[i] = wasm_i32x4_add(acc.q[i], wasm_i32x4_dot_i16x8(w_even, even));
        acc.q[i] = wasm_i32x4_add(acc.q[i], wasm_i32x4_dot_i16x8(w_odd, odd));
    }
    return acc;
}
JMB_FN vb64 vb_load(const uint8_t *p) { JMB_EACH(vb64, wasm_v128_load(p + 16 * i)); }
JMB_FN void vb_levels(const uint8_t *p, vb64 *low, vb64 *high)
{
    v128_t table = wasm_v128_load(jmb_q4_levels);
    int i;
    JMB_UNROLLED
    for (i = 0; i < 4; i++) {
        v128_t pairs = wasm_v128_load(p + 16 * i);
        low->q[i] = wasm_i8x16_swizzle(table, wasm_v128_and(pairs, wasm_i8x16_const_splat(15)));
        high->q[i] = wasm_i8x16_swizzle(table, wasm_u8x16_shr(pairs, 4));
    }
}
JMB_FN v16 vi_float(vi16 a) { JMB_EACH(v16, wasm_f32x4_convert_i32x4(a.q[i])); }

#else /* plain C */

typedef struct v16 {
    float f[16];
} v16;
typedef struct vi16 {
    int32_t i[16];
} vi16;
typedef struct vb64 {
    uint8_t b[64];
} vb64;

/* a * b + c rounded once. Without the instruction: the product of two floats is exact in double; the
 * sum is rounded to odd there (its error, by two-sum, decides), which makes the second rounding right. */
JMB_FN float JMB_K(jmb_fma1)(float a, float b, float c)
{
#if defined(__FP_FAST_FMAF) || defined(__FMA__) || defined(__aarch64__) || defined(__ARM_FEATURE_FMA)
    return fmaf(a, b, c);
#else
    double p = (double)a * (double)b, d = (double)c, s = p + d, t = s - p, error = (p - (s - t)) + (d - t);
    uint64_t bits;
    memcpy(&bits, &s, 8);
    if (error != 0 && !(bits & 1) && (bits & 0x7ff0000000000000u) != 0x7ff0000000000000u) {
        if ((error > 0) == (s > 0)) bits++;
        else bits--;
        memcpy(&s, &bits, 8);
    }
    return (float)s;
#endif
}

#undef JMB_EACH
#define JMB_EACH(expression)                                  \
    v16 r;                                                    \
    int i;                                                    \
    JMB_ROLLED for (i = 0; i < 16; i++) r.f[i] = (expression); \
    return r

JMB_FN v16 v_set1(float x) { JMB_EACH(x); }
JMB_FN v16 v_load(const float *p) { JMB_EACH(p[i]); }
JMB_FN void v_store(float *p, v16 a) { memcpy(p, a.f, sizeof a.f); }
JMB_FN v16 v_load_f16(const uint8_t *p) { JMB_EACH(jmb_f16_to_float(jmb_load_u16(p + 2 * i))); }
JMB_FN v16 v_add(v16 a, v16 b) { JMB_EACH(a.f[i] + b.f[i]); }
JMB_FN v16 v_sub(v16 a, v16 b) { JMB_EACH(a.f[i] - b.f[i]); }
JMB_FN v16 v_mul(v16 a, v16 b) { JMB_EACH(a.f[i] * b.f[i]); }
JMB_FN v16 v_div(v16 a, v16 b) { JMB_EACH(a.f[i] / b.f[i]); }
JMB_FN v16 v_sqrt(v16 a) { JMB_EACH(sqrtf(a.f[i])); }
JMB_FN v16 v_max(v16 a, v16 b) { JMB_EACH(a.f[i] > b.f[i] ? a.f[i] : b.f[i]); }
JMB_FN v16 v_min(v16 a, v16 b) { JMB_EACH(a.f[i] < b.f[i] ? a.f[i] : b.f[i]); }
JMB_FN v16 v_fma(v16 a, v16 b, v16 c) { JMB_EACH(JMB_K(jmb_fma1)(a.f[i], b.f[i], c.f[i])); }
JMB_FN v16 v_fnma(v16 a, v16 b, v16 c) { JMB_EACH(JMB_K(jmb_fma1)(-a.f[i], b.f[i], c.f[i])); }
/* Adding 2^23 leaves no fraction bits; larger values have none. Keeps the sign of zero. */
JMB_FN float JMB_K(jmb_round1)(float x)
{
    float r = jmb_float_of(jmb_bits_of(x) & 0x7fffffffu);
    if (!(r < 8388608.0f)) return x;
    r = (r + 8388608.0f) - 8388608.0f;
    return jmb_float_of(jmb_bits_of(r) | (jmb_bits_of(x) & 0x80000000u));
}
JMB_FN v16 v_round(v16 a) { JMB_EACH(JMB_K(jmb_round1)(a.f[i])); }
JMB_FN v16 v_swap(v16 a, int distance)
{
    int i;
    JMB_ROLLED
    for (i = 0; i < distance; i++) a.f[i] = a.f[i + distance];
    return a;
}
JMB_FN v16 v_raise(v16 a, v16 n) { JMB_EACH(jmb_float_of(jmb_bits_of(a.f[i]) + (jmb_bits_of(n.f[i]) << 23))); }
JMB_FN v16 v_pow2(v16 n) { JMB_EACH(jmb_float_of((uint32_t)((int32_t)n.f[i] + 127) << 23)); }
JMB_FN v16 v_select_gt(v16 a, v16 b, v16 x, v16 y) { JMB_EACH(a.f[i] > b.f[i] ? x.f[i] : y.f[i]); }
JMB_FN void v_store_i8(int8_t *p, v16 a)
{
    int i;
    JMB_ROLLED
    for (i = 0; i < 16; i++) p[i] = (int8_t)a.f[i];
}
JMB_FN v16 v_load_i8(const int8_t *p) { JMB_EACH((float)p[i]); }
JMB_FN void v_pair_bf16(const uint8_t *p, v16 *even, v16 *odd)
{
    int i;
    JMB_ROLLED
    for (i = 0; i < 16; i++) {
        even->f[i] = jmb_float_of(jmb_load_u16(p + 4 * i) << 16);
        odd->f[i] = jmb_float_of(jmb_load_u16(p + 4 * i + 2) << 16);
    }
}
JMB_FN void v_pair_f16(const uint8_t *p, v16 *even, v16 *odd)
{
    int i;
    JMB_ROLLED
    for (i = 0; i < 16; i++) {
        even->f[i] = jmb_f16_to_float(jmb_load_u16(p + 4 * i));
        odd->f[i] = jmb_f16_to_float(jmb_load_u16(p + 4 * i + 2));
    }
}
JMB_FN vi16 vi_start(int32_t sum)
{
    vi16 r;
    int i;
    JMB_ROLLED
    for (i = 0; i < 16; i++) r.i[i] = -128 * sum;
    return r;
}
JMB_FN vi16 vi_dot(vi16 acc, vb64 w, const int8_t *a)
{
    const uint8_t *b = w.b;
    int i;
    JMB_ROLLED
    for (i = 0; i < 16; i++, b += 4) acc.i[i] += b[0] * a[0] + b[1] * a[1] + b[2] * a[2] + b[3] * a[3];
    return acc;
}
JMB_FN vb64 vb_load(const uint8_t *p)
{
    vb64 r;
    memcpy(r.b, p, sizeof r.b);
    return r;
}
JMB_FN void vb_levels(const uint8_t *p, vb64 *low, vb64 *high)
{
    int i;
    JMB_ROLLED
    for (i = 0; i < 64; i++) {
        low->b[i] = jmb_q4_levels[p[i] & 15];
        high->b[i] = jmb_q4_levels[p[i] >> 4];
    }
}
JMB_FN v16 vi_float(vi16 a) { JMB_EACH((float)a.i[i]); }

#endif
#undef JMB_EACH

/* Sixteen numbers of a file or of the KV cache, which are little-endian on every machine; v_load takes its own. */
JMB_FN v16 v_load_le(const uint8_t *p)
{
#if JMB_PASS == 1 && !JMB_LITTLE_ENDIAN
    float f[16];
    int i;
    for (i = 0; i < 16; i++) f[i] = jmb_load_f32(p + 4 * i);
    return v_load(f);
#else
    return v_load((const float *)(const void *)p);
#endif
}

#if JMB_PASS != 3
/* y 2^n, rounded once, for y in [1/2, 2): in two factors, so that n may reach past either end of the exponent
 * and the result overflows to infinity or becomes subnormal as it should. */
JMB_FN v16 v_ldexp(v16 y, v16 n)
{
    v16 half = v_round(v_mul(n, v_set1(0.5f)));
    return v_mul(v_mul(y, v_pow2(half)), v_pow2(v_sub(n, half)));
}
#endif

/* ===========================================================================================
 * >>kernels - the operations, written once over 16 lanes
 *
 * The order of every sum is part of the result: a linear is one chain of fused multiply-adds over its
 * inputs (q8 and q4: over blocks, each an exact integer sum); a sum over a row goes through 16 lanes
 * and then a fixed tree; attention works in blocks of 256 keys from position 0, merged in order; the
 * scan's output is a chain over the state. Nothing depends on how many rows or tasks run together.
 * =========================================================================================== */

/* n <= 16 floats, zero beyond. */
JMB_FN v16 JMB_K(jmb_load_part)(const float *p, size_t n)
{
    float buffer[16] = { 0 };
    if (n == 16) return v_load(p);
    memcpy(buffer, p, n * sizeof *p);
    return v_load(buffer);
}
#define v_load_part JMB_K(jmb_load_part)

JMB_FN v16 JMB_K(jmb_load_part_le)(const uint8_t *p, size_t n)
{
    float buffer[16] = { 0 };
    memcpy(buffer, p, n * sizeof *buffer);
    return v_load_le((const uint8_t *)buffer);
}
#define v_load_part_le JMB_K(jmb_load_part_le)

JMB_FN void JMB_K(jmb_store_part)(float *p, v16 a, size_t n)
{
    float buffer[16];
    v_store(n == 16 ? p : buffer, a);
    if (n < 16) memcpy(p, buffer, n * sizeof *p);
}
#define v_store_part JMB_K(jmb_store_part)

/* ((0+8)+(4+12)) + ... : halves added until one is left. */
JMB_FN float JMB_K(jmb_sum)(v16 a)
{
    float f[16];
    a = v_add(a, v_swap(a, 8));
    a = v_add(a, v_swap(a, 4));
    a = v_add(a, v_swap(a, 2));
    a = v_add(a, v_swap(a, 1));
    v_store(f, a);
    return f[0];
}
#define v_sum JMB_K(jmb_sum)

JMB_FN float JMB_K(jmb_highest)(v16 a)
{
    float f[16];
    a = v_max(a, v_swap(a, 8));
    a = v_max(a, v_swap(a, 4));
    a = v_max(a, v_swap(a, 2));
    a = v_max(a, v_swap(a, 1));
    v_store(f, a);
    return f[0];
}
#define v_highest JMB_K(jmb_highest)

/* Lane numbers 0 to 15, plus `first`. */
JMB_FN v16 JMB_K(jmb_iota)(float first)
{
    static const float lanes[16] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
    return v_add(v_load(lanes), v_set1(first));
}

/* e^x = 2^n e^r with |r| <= ln2 / 2; within 1 ulp. */
JMB_FN v16 JMB_K(jmb_exp)(v16 x)
{
    v16 n, r, y;
    x = v_max(v_min(x, v_set1(90.0f)), v_set1(-105.0f));
    n = v_round(v_mul(x, v_set1(1.44269504f)));
    r = v_fnma(n, v_set1(0.693147182f), x);
    r = v_fnma(n, v_set1(-1.90465421e-9f), r);
    y = v_fma(v_set1(1.39505998e-3f), r, v_set1(8.36895406e-3f));
    y = v_fma(y, r, v_set1(4.16662060e-2f));
    y = v_fma(y, r, v_set1(1.66665182e-1f));
    y = v_fma(y, r, v_set1(0.5f));
    y = v_fma(v_mul(r, r), y, r);
    y = v_add(y, v_set1(1.0f));
    return v_ldexp(y, n);
}
#define v_exp JMB_K(jmb_exp)

/* 2^x for the decays of a scan, within 1 ulp and exact at 0; stays at 2^-126 below that, infinite from 2^128.
 * Adding 1.5 2^23 rounds x to an integer, which is then found in the low bits. */
JMB_FN v16 JMB_K(jmb_exp2)(v16 x)
{
    v16 shifted, f, y;
    x = v_max(v_min(x, v_set1(128.0f)), v_set1(-126.0f));
    shifted = v_add(x, v_set1(12582912.0f));
    f = v_sub(x, v_sub(shifted, v_set1(12582912.0f)));
    y = v_fma(v_set1(1.5353362e-4f), f, v_set1(1.3398875e-3f));
    y = v_fma(y, f, v_set1(9.61843692e-3f));
    y = v_fma(y, f, v_set1(5.55033237e-2f));
    y = v_fma(y, f, v_set1(2.40226477e-1f));
    y = v_fma(y, f, v_set1(6.93147182e-1f));
    y = v_fma(y, f, v_set1(1.0f));
    return v_raise(y, shifted);
}

/* log(1 + t) for t in [0, 1]: 2 atanh(s) with s = t / (2 + t) <= 1/3. */
JMB_FN v16 JMB_K(jmb_log1p)(v16 t)
{
    v16 s = v_div(t, v_add(t, v_set1(2.0f))), z = v_mul(s, s), y;
    y = v_fma(v_set1(2.43009388e-1f), z, v_set1(2.14276567e-1f));
    y = v_fma(y, z, v_set1(2.86168844e-1f));
    y = v_fma(y, z, v_set1(3.99988770e-1f));
    y = v_fma(y, z, v_set1(6.66666746e-1f));
    return v_fma(v_mul(s, z), y, v_add(s, s));
}

JMB_FN v16 JMB_K(jmb_softplus)(v16 x)
{
    v16 magnitude = v_max(x, v_mul(x, v_set1(-1.0f)));
    v16 tail = JMB_K(jmb_log1p)(v_exp(v_mul(magnitude, v_set1(-1.0f))));
    return v_add(v_max(v_set1(0), x), tail);
}

JMB_FN v16 JMB_K(jmb_silu)(v16 x)
{
    return v_div(x, v_add(v_set1(1.0f), v_exp(v_mul(x, v_set1(-1.0f)))));
}
#define v_silu JMB_K(jmb_silu)

/* x/2 (1 + erf(x / sqrt 2)). With t = |x| / sqrt 2, erfc(t) = e^(-t t) R(1 / (1 + t/2)) and R smooth; x minus
 * or plus its share of the tail keeps the relative precision on both sides. */
JMB_FN v16 JMB_K(jmb_gelu)(v16 x)
{
    v16 magnitude = v_max(x, v_mul(x, v_set1(-1.0f)));
    v16 s = v_div(v_set1(1.0f), v_fma(magnitude, v_set1(0.353553391f), v_set1(1.0f))), y;
    y = v_fma(v_set1(2.77484283e-2f), s, v_set1(-2.09859267e-1f));
    y = v_fma(y, s, v_set1(6.40468717e-1f));
    y = v_fma(y, s, v_set1(-9.66047466e-1f));
    y = v_fma(y, s, v_set1(6.83399439e-1f));
    y = v_fma(y, s, v_set1(-2.51376063e-1f));
    y = v_fma(y, s, v_set1(2.85077214e-1f));
    y = v_fma(y, s, v_set1(2.23446041e-1f));
    y = v_fma(y, s, v_set1(2.85290092e-1f));
    y = v_fma(y, s, v_set1(2.81844169e-1f));
    y = v_fma(y, s, v_set1(8.57061605e-6f));
    y = v_mul(v_mul(y, v_exp(v_mul(v_mul(x, x), v_set1(-0.5f)))), v_mul(magnitude, v_set1(0.5f)));
    return v_sub(v_max(x, v_set1(0)), y);
}

JMB_FN v16 JMB_K(jmb_activation)(v16 x, uint32_t act)
{
    return act == JMB_ACT_GELU ? JMB_K(jmb_gelu)(x) : v_silu(x);
}

/* sin and cos of any |x| < 2^24: x - n pi/2 in three parts, each subtraction exact or last; then the
 * quadrant n mod 4, taken as -2..2. For large x the first n may be one off: its remainder says so. */
JMB_FN void JMB_K(jmb_sincos)(v16 x, v16 *sine, v16 *cosine)
{
    v16 n = v_round(v_mul(x, v_set1(0.636619747f))), r, z, s, c, quadrant, odd, minus = v_set1(-1.0f);
    n = v_add(n, v_round(v_mul(v_fnma(n, v_set1(1.57079637f), x), v_set1(0.636619747f))));
    r = v_fnma(n, v_set1(1.57079637f), x);
    r = v_fnma(n, v_set1(-4.37113883e-8f), r);
    r = v_fnma(n, v_set1(-1.71512451e-15f), r);
    z = v_mul(r, r);
    s = v_fma(v_set1(2.71823729e-6f), z, v_set1(-1.98393274e-4f));
    s = v_fma(s, z, v_set1(8.33332911e-3f));
    s = v_fma(s, z, v_set1(-1.66666672e-1f));
    s = v_fma(v_mul(r, z), s, r);
    c = v_fma(v_set1(-2.72095463e-7f), z, v_set1(2.47995122e-5f));
    c = v_fma(c, z, v_set1(-1.38888834e-3f));
    c = v_fma(c, z, v_set1(4.16666679e-2f));
    c = v_fma(v_mul(z, z), c, v_fma(z, v_set1(-0.5f), v_set1(1.0f)));
    quadrant = v_fnma(v_round(v_mul(n, v_set1(0.25f))), v_set1(4.0f), n);
    odd = v_sub(v_mul(quadrant, quadrant), v_set1(1.0f)); /* 0 in quadrants 1 and -1, else -1 or 3 */
    odd = v_mul(odd, odd);
    *sine = v_select_gt(odd, v_set1(0.5f), s, c);
    *cosine = v_select_gt(odd, v_set1(0.5f), c, s);
    /* sine is negative in quadrants -1, -2 and 2, cosine in 1, -2 and 2 */
    z = v_mul(quadrant, quadrant);
    *sine = v_select_gt(z, v_set1(3.0f), v_mul(*sine, minus),
        v_select_gt(v_set1(-0.5f), quadrant, v_mul(*sine, minus), *sine));
    *cosine = v_select_gt(z, v_set1(3.0f), v_mul(*cosine, minus),
        v_select_gt(quadrant, v_set1(0.5f), v_mul(*cosine, minus), *cosine));
}

JMB_KERNEL void JMB_K(jmb_run_exp)(float *values, size_t count)
{
    size_t i, n;
    for (i = 0; i < count; i += 16) {
        n = count - i < 16 ? count - i : 16;
        v_store_part(values + i, v_exp(v_load_part(values + i, n)), n);
    }
}

/* 1 / sqrt(mean of squares + eps) */
JMB_FN v16 JMB_K(jmb_rms)(const float *x, size_t width, float eps)
{
    v16 sum = v_set1(0), mean, v;
    size_t i;
    for (i = 0; i + 16 <= width; i += 16) {
        v = v_load(x + i);
        sum = v_fma(v, v, sum);
    }
    if (i < width) {
        v = v_load_part(x + i, width - i);
        sum = v_fma(v, v, sum);
    }
    mean = v_div(v_set1(v_sum(sum)), v_set1((float)width));
    return v_div(v_set1(1.0f), v_sqrt(v_add(mean, v_set1(eps))));
}

JMB_KERNEL void JMB_K(jmb_run_sum)(const jmb_pass *p, const jmb_op *op, uint32_t row)
{
    const float *a = jmb_row(p, &op->in, row), *b = jmb_row(p, &op->out[1], row);
    float *out = jmb_row(p, &op->out[0], row);
    size_t i;
    for (i = 0; i < op->in.width; i += 16) v_store(out + i, v_add(v_load(a + i), v_load(b + i)));
}

/* RMSNorm (Zhang and Sennrich 2019): y = w x / rms(x). Weights are padded to 16 with zeros. */
JMB_KERNEL void JMB_K(jmb_run_norm)(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    size_t row = op->flags & JMB_OP_LAST ? p->wanted_row[task] : task, i, width = op->in.width;
    const float *x = jmb_row(p, &op->in, row);
    const uint8_t *w = op->w[0]->data;
    float *y = jmb_row(p, &op->out[0], task);
    v16 scale = JMB_K(jmb_rms)(x, width, op->eps);
    for (i = 0; i + 16 <= width; i += 16) v_store(y + i, v_mul(v_mul(v_load(x + i), scale), v_load_le(w + i * 4)));
    if (i < width) v_store(y + i, v_mul(v_mul(v_load_part(x + i, width - i), scale), v_load_le(w + i * 4)));
}

/* n <= 64 floats, zero beyond. */
JMB_FN void JMB_K(jmb_load_block)(const float *x, size_t n, v16 v[4])
{
    int i;
    if (n < 64) {
        float part[64] = { 0 };
        memcpy(part, x, n * sizeof *x);
        for (i = 0; i < 4; i++) v[i] = v_load(part + 16 * i);
    } else {
        JMB_UNROLL
        for (i = 0; i < 4; i++) v[i] = v_load(x + 16 * i);
    }
}

/* The scale of codes of 8 bits, from the highest magnitudes and from 0 times each number. A NaN or infinity makes it
 * NaN, so that it reaches the logits; numbers below 1e-30 count as zero, where 1 / scale would overflow. */
JMB_FN float JMB_K(jmb_scale_of)(v16 top, v16 taint, v16 *inverse)
{
    float highest = v_highest(top);
    if (!(highest >= 1e-30f)) highest = 0;
    *inverse = v_set1(highest > 0 ? 1.0f / (highest / 127.0f) : 0);
    return highest / 127.0f + v_sum(taint);
}

JMB_FN v16 JMB_K(jmb_codes_of)(v16 v, v16 inverse)
{
    return v_min(v_max(v_round(v_mul(v, inverse)), v_set1(-127.0f)), v_set1(127.0f));
}

/* Codes of one block of n <= 64 floats, its scale, and the sums of each 32 codes. */
JMB_FN void JMB_K(jmb_quantise_block)(const float *x, size_t n, int8_t *codes, float *scale, int32_t sums[2])
{
    v16 v[4], top = v_set1(0), taint = v_set1(0), inverse;
    int i;
    JMB_K(jmb_load_block)(x, n, v);
    JMB_UNROLL
    for (i = 0; i < 4; i++) {
        top = v_max(top, v_max(v[i], v_mul(v[i], v_set1(-1.0f))));
        taint = v_fma(v[i], v_set1(0), taint);
    }
    *scale = JMB_K(jmb_scale_of)(top, taint, &inverse);
    JMB_UNROLL
    for (i = 0; i < 4; i++) {
        v[i] = JMB_K(jmb_codes_of)(v[i], inverse);
        v_store_i8(codes + 16 * i, v[i]);
    }
    for (i = 0; i < 2; i++) sums[i] = (int32_t)v_sum(v_add(v[2 * i], v[2 * i + 1]));
}

/* Blocks [begin, end) of one row. */
JMB_FN void JMB_K(jmb_quantise_row)(const jmb_pass *p, const jmb_op *op, size_t row, size_t begin, size_t end)
{
    size_t width = op->in.width, b;
    const float *x = jmb_row(p, &op->in, row);
    int8_t *codes = (int8_t *)(p->codes + row * p->codes_row);
    float *scale = (float *)(void *)(codes + jmb_pad64(width));
    int32_t *sums = (int32_t *)(void *)(scale + jmb_pad64(width) / 64);
    for (b = begin; b < end; b++) {
        size_t n = width - b * 64 < 64 ? width - b * 64 : 64;
        JMB_K(jmb_quantise_block)(x + b * 64, n, codes + b * 64, scale + b, sums + b * 2);
    }
}

JMB_KERNEL void JMB_K(jmb_run_quantise)(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    jmb_slab slab;
    size_t row;
    if (!(op->flags & JMB_OP_SLABS)) {
        JMB_K(jmb_quantise_row)(p, op, task, 0, (op->in.width + 63) / 64);
        return;
    }
    slab = jmb_slab_of(p, op->in.width, task);
    for (row = slab.span->first; row < slab.span->first + slab.span->rows; row++)
        JMB_K(jmb_quantise_row)(p, op, row, slab.begin / 64, (slab.end + 63) / 64);
}

/* ---- linears -------------------------------------------------------------------------------- */

/* A tile is some panels against some rows: its sums stay in registers, and each number it loads meets several.
 * X(rows, panels), ascending: n rows take the first that holds them, and no more rows go together than the last
 * holds. Rows and panels that are not there repeat one that is; plain C has tiles of any size. One row has several
 * panels, as several streams from memory hide its latency where one cannot. */
#undef JMB_TILES
#undef JMB_TILE_ROWS
#if JMB_PASS == 3
#define JMB_TILES(X) X(1, 4) X(2, 4) X(4, 4)
#define JMB_TILE_ROWS 4
#elif JMB_PASS == 8
#define JMB_TILES(X) X(1, 4) X(3, 2) X(6, 1)
#define JMB_TILE_ROWS 6
#else
#define JMB_TILES(X) X(1, 4) X(2, 2) X(4, 1)
#define JMB_TILE_ROWS 4
#endif
#undef JMB_TILE_SUMS
#define JMB_TILE_SUMS 16

/* Where the input rows of a linear are. */
typedef struct JMB_K(jmb_input_rows) {
    const float *x; /* NULL: codes */
    const uint8_t *codes;
    size_t stride, blocks; /* floats or bytes from row to row; blocks of 64 */
} JMB_K(jmb_input_rows);
#define jmb_rows_in JMB_K(jmb_input_rows)

/* The panels of a tile, and how far behind them the next ones are. */
typedef struct JMB_K(jmb_tile_panels) {
    const uint8_t *at[JMB_STREAMS];
    size_t next;
} JMB_K(jmb_tile_panels);
#define jmb_panels_in JMB_K(jmb_tile_panels)

/* Prefetches what follows the bytes from `done` on, of `size`, in every panel: behind their end the next panels
 * begin. Inside long panels the hardware does it better, so long as there is little else to do. */
JMB_FN void JMB_K(jmb_prefetch)(
    const jmb_panels_in *panels, const int m, size_t done, size_t bytes, size_t size, bool inside)
{
    size_t ahead = done + JMB_PREFETCH, j;
    int i;
    if (ahead >= size) ahead = ahead - size + panels->next;
    else if (!inside) return;
    JMB_UNROLL
    for (i = 0; i < m; i++) {
        JMB_UNROLL
        for (j = 0; j < bytes; j += 64) v_prefetch(panels->at[i] + ahead + j);
    }
}

/* m panels against n rows, both constants wherever a tile is inlined: acc[i * JMB_TILE_ROWS + t] = panel i x[t]. */
JMB_FN void JMB_K(jmb_tile_f32)(
    const jmb_panels_in *panels, size_t cols, const float *const *x, const int m, const int n, v16 *acc)
{
    v16 sum[JMB_TILE_SUMS];
    size_t k;
    int i, t;
    JMB_UNROLL
    for (t = 0; t < m * n; t++) sum[t] = v_set1(0);
    for (k = 0; k < cols; k++) {
        JMB_UNROLL
        for (i = 0; i < m; i++) {
            v16 w = v_load_le(panels->at[i] + k * 64);
            JMB_UNROLL
            for (t = 0; t < n; t++) sum[i * n + t] = v_fma(w, v_set1(x[t][k]), sum[i * n + t]);
        }
    }
    JMB_UNROLL
    for (t = 0; t < m * n; t++) acc[t / n * JMB_TILE_ROWS + t % n] = sum[t];
}

JMB_FN void JMB_K(jmb_tile_16)(
    const jmb_panels_in *panels, size_t cols, bool bf16, const float *const *x, const int m, const int n, v16 *acc)
{
    v16 sum[JMB_TILE_SUMS], even, odd;
    size_t k;
    int i, t;
    JMB_UNROLL
    for (t = 0; t < m * n; t++) sum[t] = v_set1(0);
    for (k = 0; k < cols; k += 2) {
        JMB_UNROLL
        for (i = 0; i < m; i++) {
            if (bf16) v_pair_bf16(panels->at[i] + k * 32, &even, &odd);
            else v_pair_f16(panels->at[i] + k * 32, &even, &odd);
            JMB_UNROLL
            for (t = 0; t < n; t++) sum[i * n + t] = v_fma(even, v_set1(x[t][k]), sum[i * n + t]);
            if (k + 1 == cols) continue;
            JMB_UNROLL
            for (t = 0; t < n; t++) sum[i * n + t] = v_fma(odd, v_set1(x[t][k + 1]), sum[i * n + t]);
        }
    }
    JMB_UNROLL
    for (t = 0; t < m * n; t++) acc[t / n * JMB_TILE_ROWS + t % n] = sum[t];
}

/* The parts of a quantised row of `blocks` times 64 numbers. */
JMB_FN float JMB_K(jmb_code_scale)(const uint8_t *codes, size_t blocks, size_t block)
{
    return ((const float *)(const void *)(codes + blocks * 64))[block];
}

JMB_FN const int32_t *JMB_K(jmb_code_sums)(const uint8_t *codes, size_t blocks)
{
    return (const int32_t *)(const void *)(codes + blocks * 68);
}

/* out += (exact integer sum of a block) * (scale of the weights * scale of the row) */
JMB_FN v16 JMB_K(jmb_add_block)(v16 out, vi16 sum, const uint8_t *scales, float row_scale)
{
    return v_fma(vi_float(sum), v_mul(v_load_f16(scales), v_set1(row_scale)), out);
}

JMB_FN void JMB_K(jmb_tile_q8)(
    const jmb_panels_in *panels, size_t blocks, const uint8_t *const *codes, const int m, const int n, v16 *acc)
{
    v16 out[JMB_TILE_SUMS];
    size_t b, j;
    int i, t;
    JMB_UNROLL
    for (t = 0; t < m * n; t++) out[t] = v_set1(0);
    for (b = 0; b < blocks; b++) {
        vi16 sum[JMB_TILE_SUMS];
        JMB_K(jmb_prefetch)(panels, m, b * 1024, 1024, blocks * 1024, false);
        JMB_UNROLL
        for (t = 0; t < m * n; t++) {
            const int32_t *sums = JMB_K(jmb_code_sums)(codes[t % n], blocks) + b * 2;
            sum[t] = vi_start(sums[0] + sums[1]);
        }
        for (j = 0; j < 16; j++) {
            JMB_UNROLL
            for (i = 0; i < m; i++) {
                vb64 w = vb_load(panels->at[i] + b * 1024 + j * 64);
                JMB_UNROLL
                for (t = 0; t < n; t++)
                    sum[i * n + t] = vi_dot(sum[i * n + t], w, (const int8_t *)codes[t] + b * 64 + j * 4);
            }
        }
        JMB_UNROLL
        for (t = 0; t < m * n; t++) {
            const uint8_t *scales = panels->at[t / n] + blocks * 1024;
            float row_scale = JMB_K(jmb_code_scale)(codes[t % n], blocks, b);
            out[t] = JMB_K(jmb_add_block)(out[t], sum[t], scales + b * 32, row_scale);
        }
    }
    JMB_UNROLL
    for (t = 0; t < m * n; t++) acc[t / n * JMB_TILE_ROWS + t % n] = out[t];
}

JMB_FN void JMB_K(jmb_tile_q4)(
    const jmb_panels_in *panels, size_t blocks, const uint8_t *const *codes, const int m, const int n, v16 *acc)
{
    v16 out[JMB_TILE_SUMS];
    size_t b, j;
    int i, t;
    JMB_UNROLL
    for (t = 0; t < m * n; t++) out[t] = v_set1(0);
    for (b = 0; b < blocks * 2; b++) { /* of 32 */
        vi16 sum[JMB_TILE_SUMS];
        JMB_K(jmb_prefetch)(panels, m, b * 256, 256, blocks * 512, true);
        JMB_UNROLL
        for (t = 0; t < m * n; t++) sum[t] = vi_start(JMB_K(jmb_code_sums)(codes[t % n], blocks)[b]);
        for (j = 0; j < 4; j++) {
            JMB_UNROLL
            for (i = 0; i < m; i++) {
                vb64 low, high;
                vb_levels(panels->at[i] + b * 256 + j * 64, &low, &high);
                JMB_UNROLL
                for (t = 0; t < n; t++) {
                    const int8_t *a = (const int8_t *)codes[t] + b * 32 + j * 4;
                    sum[i * n + t] = vi_dot(vi_dot(sum[i * n + t], low, a), high, a + 16);
                }
            }
        }
        JMB_UNROLL
        for (t = 0; t < m * n; t++) {
            const uint8_t *scales = panels->at[t / n] + blocks * 512;
            float row_scale = JMB_K(jmb_code_scale)(codes[t % n], blocks, b / 2);
            out[t] = JMB_K(jmb_add_block)(out[t], sum[t], scales + b * 32, row_scale);
        }
    }
    JMB_UNROLL
    for (t = 0; t < m * n; t++) acc[t / n * JMB_TILE_ROWS + t % n] = out[t];
}

#if JMB_PASS == 6
/* 8 k of one panel, w and v, for n rows, from k = `at` on. */
JMB_FN void JMB_K(jmb_pairs_dot)(
    JMB_K(jmb_vi_pair) *sum, vb64 w, vb64 v, const uint8_t *const *codes, size_t at, const int n)
{
    int t;
    JMB_UNROLL
    for (t = 0; t < n; t += 2)
        sum[t / 2] = JMB_K(jmb_pair_dot)(
            sum[t / 2], w, v, (const int8_t *)codes[t] + at, (const int8_t *)codes[t + 1] + at);
}

/* A tile of one panel and an even number of rows, for the 8-bit matrix product. */
JMB_FN void JMB_K(jmb_tile_pairs)(
    const uint8_t *panel, size_t blocks, const uint8_t *const *codes, const bool q4, const int n, v16 *acc)
{
    const size_t bytes = q4 ? 256 : 1024, width = q4 ? 32 : 64, count = q4 ? 2 * blocks : blocks;
    JMB_K(jmb_vi_pair) sum[JMB_TILE_ROWS / 2];
    vb64 low[2], high[2];
    size_t b, j;
    int t;
    for (t = 0; t < n; t++) acc[t] = v_set1(0);
    for (b = 0; b < count; b++) {
        const uint8_t *at = panel + b * bytes, *scales = panel + count * bytes + b * 32;
        JMB_UNROLL
        for (t = 0; t < n; t += 2) {
            const int32_t *x = JMB_K(jmb_code_sums)(codes[t], blocks), *y = JMB_K(jmb_code_sums)(codes[t + 1], blocks);
            sum[t / 2] = q4 ? JMB_K(jmb_pair_start)(x[b], y[b])
                            : JMB_K(jmb_pair_start)(x[2 * b] + x[2 * b + 1], y[2 * b] + y[2 * b + 1]);
        }
        for (j = 0; q4 && j < 4; j += 2) {
            vb_levels(at + j * 64, &low[0], &high[0]);
            vb_levels(at + j * 64 + 64, &low[1], &high[1]);
            JMB_K(jmb_pairs_dot)(sum, low[0], low[1], codes, b * width + j * 4, n);
            JMB_K(jmb_pairs_dot)(sum, high[0], high[1], codes, b * width + j * 4 + 16, n);
        }
        for (j = 0; !q4 && j < 16; j += 2)
            JMB_K(jmb_pairs_dot)(
                sum, vb_load(at + j * 64), vb_load(at + j * 64 + 64), codes, b * width + j * 4, n);
        JMB_UNROLL
        for (t = 0; t < n; t++) {
            vi16 one = t % 2 ? JMB_K(jmb_pair_y)(sum[t / 2]) : JMB_K(jmb_pair_x)(sum[t / 2]);
            float row_scale = JMB_K(jmb_code_scale)(codes[t], blocks, b * width / 64);
            acc[t] = JMB_K(jmb_add_block)(acc[t], one, scales, row_scale);
        }
    }
}
#endif

/* Panels from `first` on, `count` of the tile's m, against the rows, `there` of its n. */
JMB_FN void JMB_K(jmb_tile)(const jmb_tensor *w, size_t first, int count, const jmb_rows_in *in, const size_t *rows,
    int there, const int m, const int n, v16 *acc)
{
    const size_t bytes = (size_t)jmb_panel_bytes(w->type, w->cols);
    jmb_panels_in panels;
    const float *x[JMB_TILE_ROWS];
    const uint8_t *codes[JMB_TILE_ROWS];
    int i, t;
    panels.next = (size_t)m * bytes;
    for (i = 0; i < m; i++) panels.at[i] = w->data + (first + (size_t)(i < count ? i : 0)) * bytes;
    for (t = 0; t < n; t++) {
        size_t row = rows[t < there ? t : 0];
        x[t] = in->codes ? NULL : in->x + row * in->stride;
        codes[t] = in->codes ? in->codes + row * in->stride : NULL;
    }
#if JMB_PASS == 6
    if (in->codes && m == 1 && n % 2 == 0) {
        if (w->type == JMB_Q4) JMB_K(jmb_tile_pairs)(panels.at[0], in->blocks, codes, true, n, acc);
        else JMB_K(jmb_tile_pairs)(panels.at[0], in->blocks, codes, false, n, acc);
        return;
    }
#endif
    switch (w->type) {
    case JMB_F32: JMB_K(jmb_tile_f32)(&panels, w->cols, x, m, n, acc); break;
    case JMB_Q8: JMB_K(jmb_tile_q8)(&panels, in->blocks, codes, m, n, acc); break;
    case JMB_Q4: JMB_K(jmb_tile_q4)(&panels, in->blocks, codes, m, n, acc); break;
    default: JMB_K(jmb_tile_16)(&panels, w->cols, w->type == JMB_BF16, x, m, n, acc); break;
    }
}

/* acc[i * JMB_TILE_ROWS + t] = panel first + i, row t, for up to JMB_STREAMS panels and JMB_TILE_ROWS rows. What
 * acc holds of other rows and panels is overwritten. */
JMB_KERNEL void JMB_K(jmb_panels_times)(
    const jmb_tensor *w, size_t first, int count, const jmb_rows_in *in, const size_t *rows, int n, v16 *acc)
{
#if JMB_PASS == 1
    JMB_K(jmb_tile)(w, first, count, in, rows, n, count, n, acc);
#else
    int i;
#define JMB_TILE(r, p)                                                                                         \
    if (n <= (r)) {                                                                                            \
        for (i = 0; i < count; i += (p))                                                                       \
            JMB_K(jmb_tile)(w, first + (size_t)i, count - i, in, rows, n, p, r, acc + i * JMB_TILE_ROWS);      \
        return;                                                                                                \
    }
    JMB_TILES(JMB_TILE)
#undef JMB_TILE
#endif
}

JMB_FN jmb_rows_in JMB_K(jmb_rows_of)(const jmb_pass *p, const jmb_op *op)
{
    jmb_rows_in in;
    bool codes = (op->flags & JMB_OP_CODES) != 0;
    in.x = codes ? NULL : jmb_row(p, &op->in, 0);
    in.codes = codes ? p->codes : NULL;
    in.stride = codes ? p->codes_row : op->in.stride;
    in.blocks = jmb_pad64(op->in.width) / 64;
    return in;
}

/* One part of a linear. */
typedef struct JMB_K(jmb_linear_part) {
    const jmb_tensor *w, *bias, *low_w; /* bias and low_w may be NULL */
    jmb_rows_in in, low;
    uint32_t act; /* of paired matrices */
    const jmb_pass *adapted; /* the pass where some session has adapters, else NULL */
    const jmb_op *op;
    uint32_t part, expert;
} JMB_K(jmb_linear_part);
#define jmb_part_in JMB_K(jmb_linear_part)

JMB_FN jmb_part_in JMB_K(jmb_part_at)(const jmb_pass *p, const jmb_op *op, size_t part)
{
    jmb_part_in l;
    l.w = op->w[part];
    l.bias = op->bias[part];
    l.low_w = op->low_w[part];
    l.in = JMB_K(jmb_rows_of)(p, op);
    l.low.x = jmb_row(p, &op->low[part], 0);
    l.low.codes = NULL;
    l.low.stride = op->low[part].stride;
    l.low.blocks = 0;
    l.act = op->block ? op->block->act : 0;
    l.adapted = p->lora_panels ? p : NULL;
    l.op = op;
    l.part = (uint32_t)part;
    l.expert = 0;
    return l;
}

/* y[i] += B (scale A x) of one row, for `count` panels. */
JMB_KERNEL void JMB_K(jmb_add_lora)(const jmb_lora *lora, const float *low, size_t first, int count, v16 *y)
{
    v16 add[JMB_STREAMS * JMB_TILE_ROWS];
    const size_t row = 0;
    jmb_rows_in in;
    int i;
    in.x = low;
    in.codes = NULL;
    in.stride = in.blocks = 0;
    JMB_K(jmb_panels_times)(&lora->b, first, count, &in, &row, 1, add);
    for (i = 0; i < count; i++) y[i * JMB_TILE_ROWS] = v_add(y[i * JMB_TILE_ROWS], add[i * JMB_TILE_ROWS]);
}

/* The same for the n output rows from `at` on and all adapters of their sessions. */
JMB_KERNEL void JMB_K(jmb_add_loras)(const jmb_part_in *l, size_t first, int count, size_t at, int n, v16 *y)
{
    uint32_t slot = l->op->slot + (jmb_of_experts(l->op) ? l->expert : l->part), i;
    int t;
    for (t = 0; t < n; t++) {
        jmb_adapted a = jmb_adapted_of(l->adapted, l->op, l->part, l->expert, at + (size_t)t);
        for (i = 0; a.adapters && i < a.adapters->count; i++) {
            const jmb_lora *lora = a.adapters->loras[i][slot];
            const jmb_lora *low = l->low_w ? a.adapters->loras[i][slot + l->op->parts] : NULL;
            if (lora) JMB_K(jmb_add_lora)(lora, jmb_low_of(&a, i), first, count, y + t);
            a.slot += l->op->parts;
            if (low) JMB_K(jmb_add_lora)(low, jmb_low_of(&a, i), first, count, y + t);
            a.slot -= l->op->parts;
        }
    }
}

/* y = W x + B low + adapters + bias for `count` panels and n rows, laid out as jmb_panels_times does. `at`: the first
 * row of the output, as `rows` are of the input. */
JMB_KERNEL void JMB_K(jmb_panel_outputs)(
    const jmb_part_in *l, size_t first, int count, const size_t *rows, size_t at, int n, v16 *y)
{
    v16 low[JMB_STREAMS * JMB_TILE_ROWS];
    const uint8_t *bias = l->bias ? l->bias->data + first * 64 : NULL;
    int i, t;
    JMB_K(jmb_panels_times)(l->w, first, count, &l->in, rows, n, y);
    if (l->low_w) {
        JMB_K(jmb_panels_times)(l->low_w, first, count, &l->low, rows, n, low);
        for (i = 0; i < count; i++)
            for (t = i * JMB_TILE_ROWS; t < i * JMB_TILE_ROWS + n; t++) y[t] = v_add(y[t], low[t]);
    }
    if (l->adapted) JMB_K(jmb_add_loras)(l, first, count, at, n, y);
    for (i = 0; bias && i < count; i++)
        for (t = i * JMB_TILE_ROWS; t < i * JMB_TILE_ROWS + n; t++) y[t] = v_add(y[t], v_load_le(bias + i * 64));
}

/* Outputs i, i + 1, ... of 16 lanes, `count` of them, for n rows: panels, or act(gate) * up of pairs. Laid out as
 * jmb_panels_times does. */
JMB_KERNEL void JMB_K(jmb_outputs)(
    const jmb_part_in *l, size_t i, int count, const size_t *rows, size_t at, int n, v16 *y)
{
    v16 both[JMB_STREAMS * JMB_TILE_ROWS];
    int c, t;
    if (!jmb_roles[l->w->role].paired) {
        JMB_K(jmb_panel_outputs)(l, i, count, rows, at, n, y);
        return;
    }
    JMB_K(jmb_panel_outputs)(l, 2 * i, 2 * count, rows, at, n, both);
    for (c = 0; c < count; c++) {
        const v16 *gate = both + 2 * c * JMB_TILE_ROWS, *up = gate + JMB_TILE_ROWS;
        for (t = 0; t < n; t++) y[c * JMB_TILE_ROWS + t] = v_mul(JMB_K(jmb_activation)(gate[t], l->act), up[t]);
    }
}

/* How many outputs to compute at once: as many as there are streams. */
JMB_FN int JMB_K(jmb_outputs_step)(const jmb_tensor *w)
{
    return jmb_roles[w->role].paired ? JMB_STREAMS / 2 : JMB_STREAMS;
}

/* Where row `row` of a part's output i goes, and how. */
JMB_FN void JMB_K(jmb_put)(const jmb_pass *p, const jmb_op *op, size_t part, size_t row, size_t i, v16 y)
{
    const jmb_view *view = &op->out[part];
    float *out = op->flags & JMB_OP_LAST ? p->logits[row] : jmb_row(p, view, row);
    if (!out) return; /* logits of a session that has left */
    out += i * 16;
    if (op->flags & JMB_OP_ADD) y = v_add(v_load(out), y);
    if ((op->flags & JMB_OP_EXACT) && i * 16 + 16 > view->width) v_store_part(out, y, view->width - i * 16);
    else v_store(out, y);
}

/* y = W x (+ b), for the outputs and rows of one task. Of experts: the rows are assignments, of x where it is not by
 * assignment already. */
JMB_KERNEL void JMB_K(jmb_run_linear)(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    jmb_portion portion = jmb_portion_of(p, op, task);
    const int32_t *of = op->kind == JMB_OP_EXPERT_UP ? p->routing.row : NULL;
    size_t i, row, rows[JMB_TILE_ROWS];
    v16 y[JMB_STREAMS * JMB_TILE_ROWS];
    jmb_part_in l = JMB_K(jmb_part_at)(p, op, portion.part);
    int step = JMB_K(jmb_outputs_step)(l.w), n, count, c, t;
    l.w += 2 * portion.expert; /* gate_up and down alternate in the directory */
    l.expert = portion.expert;
    for (i = portion.first; i < portion.stop; i += (size_t)step) {
        count = portion.stop - i < (size_t)step ? (int)(portion.stop - i) : step;
        for (row = portion.row; row < portion.stop_row; row += JMB_TILE_ROWS) {
            n = portion.stop_row - row < JMB_TILE_ROWS ? (int)(portion.stop_row - row) : JMB_TILE_ROWS;
            for (t = 0; t < n; t++) rows[t] = of ? (size_t)of[row + (size_t)t] : row + (size_t)t;
            JMB_K(jmb_outputs)(&l, i, count, rows, row, n, y);
            for (c = 0; c < count; c++)
                for (t = 0; t < n; t++)
                    JMB_K(jmb_put)(p, op, portion.part, row + (size_t)t, i + (size_t)c, y[c * JMB_TILE_ROWS + t]);
        }
    }
}

/* ---- adapters ------------------------------------------------------------------------------- */

/* The x that an adapter of the linear sees, of one row and slot, and what it goes with. */
JMB_FN const float *JMB_K(jmb_adapt_input)(
    const jmb_pass *p, const jmb_op *linear, uint32_t row, uint32_t slot, uint32_t *matrix)
{
    size_t choice = (size_t)row * jmb_adapt_slots(linear) + slot;
    *matrix = linear->slot + slot;
    if (!jmb_of_experts(linear))
        return jmb_row(p, slot < linear->parts ? &linear->in : &linear->low[slot - linear->parts], row);
    *matrix = linear->slot + (uint32_t)p->routing.expert[choice];
    return jmb_row(p, &linear->in, linear->kind == JMB_OP_EXPERT_UP ? row : (size_t)p->routing.place[choice]);
}

/* scale A x: sixteen numbers of one row and slot. */
JMB_KERNEL void JMB_K(jmb_run_adapt)(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    const jmb_op *linear = op + 1;
    uint32_t panels = p->lora_panels, slots = jmb_adapt_slots(linear), panel = task % panels, i = 0, matrix;
    uint32_t row = task / panels / slots, token = linear->flags & JMB_OP_LAST ? p->wanted_row[row] : row;
    const jmb_span *span = jmb_span_of(p, token);
    const jmb_adapters *all = span->adapters;
    const size_t first = 0;
    const jmb_lora *lora;
    jmb_adapted a;
    jmb_rows_in in;
    v16 low[JMB_TILE_ROWS * JMB_STREAMS];
    if (!all || panel * 16 >= all->at[all->count]) return;
    a.adapters = all;
    a.row = token - span->first;
    a.slot = task / panels % slots;
    while (panel * 16 >= all->at[i + 1]) i++;
    panel -= all->at[i] / 16;
    in.x = JMB_K(jmb_adapt_input)(p, linear, row, a.slot, &matrix);
    in.codes = NULL;
    in.stride = in.blocks = 0;
    lora = all->loras[i][matrix];
    if (!lora || panel * 16 >= lora->a.rows) return;
    JMB_K(jmb_panels_times)(&lora->a, panel, 1, &in, &first, 1, low);
    v_store(jmb_low_of(&a, i) + panel * 16, v_mul(low[0], v_set1(all->scale[i])));
}

/* The embedding's row of A is its token's. */
JMB_KERNEL void JMB_K(jmb_run_adapt_embed)(const jmb_pass *p, const jmb_op *op, uint32_t row)
{
    const jmb_span *span = jmb_span_of(p, row);
    const jmb_adapters *all = span->adapters;
    uint32_t local = row - span->first, i, k, panel;
    jmb_adapted a;
    a.adapters = all;
    a.row = local;
    a.slot = 0;
    for (i = 0; all && i < all->count; i++) {
        const jmb_lora *lora = all->loras[i][op->slot];
        float *low = lora ? jmb_low_of(&a, i) : NULL;
        for (k = 0; lora && k < (uint32_t)jmb_pad16(lora->a.cols); k++)
            low[k] = k < lora->a.cols ? jmb_weight(&lora->a, (size_t)span->tokens[local], k) * all->scale[i] : 0;
        for (panel = 0; lora && panel * 16 < op->out[0].width; panel++) {
            float *x = jmb_row(p, &op->out[0], row) + panel * 16;
            v16 y[JMB_TILE_ROWS];
            y[0] = v_load(x);
            JMB_K(jmb_add_lora)(lora, low, panel, 1, y);
            v_store(x, y[0]);
        }
    }
    if (all && op->out[1].width)
        memcpy(jmb_row(p, &op->out[1], row), jmb_row(p, &op->out[0], row), op->out[0].width * sizeof(float));
}

/* ---- mixture of experts --------------------------------------------------------------------- */

/* The k most probable experts in ascending order, of equal ones the first; always k different ones, whatever
 * a NaN compares as. */
JMB_KERNEL void JMB_K(jmb_choose_experts)(float *probability, uint32_t experts, uint32_t k, int32_t *chosen)
{
    uint32_t n, e, best;
    uint8_t taken[JMB_MAX_EXPERTS] = { 0 };
    for (n = 0; n < k; n++) {
        best = experts;
        for (e = 0; e < experts; e++)
            if (!taken[e] && (best == experts || probability[e] > probability[best])) best = e;
        taken[best] = 1;
    }
    for (n = 0, e = 0; e < experts; e++)
        if (taken[e]) chosen[n++] = (int32_t)e;
}

/* weight_e = softmax over all experts of W_router x, kept for the top k, divided by their sum where asked. */
JMB_KERNEL void JMB_K(jmb_run_route)(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    const jmb_block *b = op->block;
    float *logits = jmb_row(p, &op->in, task), *weight = p->routing.weight + (size_t)task * b->top_k;
    int32_t *chosen = p->routing.expert + (size_t)task * b->top_k;
    v16 top = v_set1(-3e38f), sum = v_set1(0), count = v_set1((float)b->experts), v;
    float total;
    size_t i;
    for (i = 0; i < b->experts; i += 16) {
        v = v_select_gt(count, JMB_K(jmb_iota)((float)i), v_load(logits + i), v_set1(-3e38f));
        top = v_max(v, top);
    }
    top = v_set1(v_highest(top));
    for (i = 0; i < b->experts; i += 16) {
        v = v_exp(v_sub(v_load(logits + i), top));
        v = v_select_gt(count, JMB_K(jmb_iota)((float)i), v, v_set1(0));
        v_store(logits + i, v);
        sum = v_add(sum, v);
    }
    total = v_sum(sum);
    for (i = 0; i < b->experts; i++) logits[i] /= total;
    JMB_K(jmb_choose_experts)(logits, b->experts, b->top_k, chosen);
    if (!jmb_finite(total)) /* a NaN or infinite logit: let it reach the output */
        for (i = 0; i < b->experts; i++) logits[i] = jmb_float_of(0x7fc00000u);
    for (i = 0, total = 0; i < b->top_k; i++) total += weight[i] = logits[chosen[i]];
    if (b->flags & JMB_RENORMALISE)
        for (i = 0; i < b->top_k; i++) weight[i] /= total;
}

/* x += sum over the chosen experts, in ascending order, of weight * (down h). */
JMB_KERNEL void JMB_K(jmb_run_combine)(const jmb_pass *p, const jmb_op *op, uint32_t row)
{
    const jmb_routing *r = &p->routing;
    uint32_t top_k = op->block->top_k, k;
    float *x = jmb_row(p, &op->out[0], row);
    size_t i;
    for (i = 0; i < op->out[0].width; i += 16) {
        v16 sum = v_set1(0);
        for (k = row * top_k; k < (row + 1) * top_k; k++)
            sum = v_fma(v_set1(r->weight[k]), v_load(jmb_row(p, &op->in, (size_t)r->place[k]) + i), sum);
        v_store(x + i, v_add(v_load(x + i), sum));
    }
}

/* ---- Mamba ---------------------------------------------------------------------------------- */

/* u_t = act(b + sum_j w_j u_{t-K+1+j}), oldest first, for 16 channels. State: the last K-1 inputs. */
JMB_FN void JMB_K(jmb_conv_tile)(
    const jmb_pass *p, const jmb_op *op, size_t part, const jmb_span *span, float *state, size_t at)
{
    size_t taps = op->block->d_conv, row, j;
    const uint8_t *w = op->w[part]->data + at * taps * 4;
    v16 bias = op->bias[part] ? v_load_le(op->bias[part]->data + at * 4) : v_set1(0);
    for (row = span->first; row < span->first + span->rows; row++) {
        float *u = jmb_row(p, &op->out[part], row) + at;
        v16 newest = v_load(u), sum = bias;
        for (j = 0; j + 1 < taps; j++) {
            v16 past = v_load(state + j * 16);
            sum = v_fma(v_load_le(w + j * 64), past, sum);
            if (j > 0) v_store(state + (j - 1) * 16, past);
        }
        sum = v_fma(v_load_le(w + j * 64), newest, sum);
        if (taps > 1) v_store(state + (taps - 2) * 16, newest);
        v_store(u, JMB_K(jmb_activation)(sum, op->block->act));
    }
}

JMB_KERNEL void JMB_K(jmb_run_conv)(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    size_t part = 0, past = op->block->d_conv - 1, conv_at = (size_t)op->conv_at, at;
    jmb_slab slab;
    while (task >= jmb_slabs(p, op->out[part].width) * p->span_count) {
        task -= jmb_slabs(p, op->out[part].width) * p->span_count;
        conv_at += op->out[part++].stride * past;
    }
    slab = jmb_slab_of(p, op->out[part].width, task);
    for (at = slab.begin; at < slab.end && slab.span->session; at += 16)
        JMB_K(jmb_conv_tile)(p, op, part, slab.span, slab.span->state + conv_at + at * past, at);
}

/* The scans take blocks of rows. Tiles of states stay in registers over a block, each continuing the sums y of
 * the tiles before it: every y remains one chain over n. */
#undef JMB_SCAN_STATES
#undef JMB_SCAN2_STATES
#undef JMB_SCAN2_COLUMNS
#define JMB_SCAN_ROWS 32
#if JMB_PASS == 1
#define JMB_SCAN_STATES 1
#define JMB_SCAN2_STATES 1
#define JMB_SCAN2_COLUMNS 1
#elif JMB_PASS == 3
#define JMB_SCAN_STATES 4
#define JMB_SCAN2_STATES 8
#define JMB_SCAN2_COLUMNS 2
#else
#define JMB_SCAN_STATES 4
#define JMB_SCAN2_STATES 4
#define JMB_SCAN2_COLUMNS 1
#endif

/* Where B and C of 16 channels begin in a row: the first one's, and each one's from there. */
typedef struct JMB_K(jmb_head_lanes) {
    bool same; /* one head */
    size_t first, at[16];
} JMB_K(jmb_head_lanes);
#define jmb_lanes_of JMB_K(jmb_head_lanes)

JMB_FN void JMB_K(jmb_find_heads)(const jmb_block *m, size_t channel, jmb_lanes_of *heads)
{
    size_t i, width = m->d_inner / m->heads, stride = jmb_pad16(m->d_state);
    heads->first = channel / width * stride;
    for (i = 0; i < 16; i++) {
        size_t c = channel + i < m->d_inner ? channel + i : m->d_inner - 1;
        heads->at[i] = c / width * stride - heads->first;
    }
    heads->same = heads->at[15] == 0;
}

JMB_FN v16 JMB_K(jmb_of_heads)(const float *first, const jmb_lanes_of *heads)
{
    float lanes[16];
    size_t i;
    if (heads->same) return v_set1(*first);
    for (i = 0; i < 16; i++) lanes[i] = first[heads->at[i]];
    return v_load(lanes);
}

/* One block of rows of 16 channels. Columns of the activations lie far apart: they are copied together. */
typedef struct JMB_K(jmb_scan_block) {
    size_t rows, stride; /* floats from one row of B or C to the next */
    const float *b, *c;  /* of the first row and head */
    jmb_lanes_of heads;
    float dt[JMB_SCAN_ROWS * 16], u[JMB_SCAN_ROWS * 16], z[JMB_SCAN_ROWS * 16];
    float dtu[JMB_SCAN_ROWS * 16], y[JMB_SCAN_ROWS * 16];
} JMB_K(jmb_scan_block);
#define jmb_scan_in JMB_K(jmb_scan_block)

JMB_FN void JMB_K(jmb_scan_fetch)(jmb_scan_in *s, const jmb_pass *p, const jmb_op *op, size_t at, size_t first)
{
    v16 bias = v_load_le(op->bias[0]->data + at * 4);
    size_t i;
    s->stride = op->out[2].stride;
    s->b = jmb_row(p, &op->out[2], first) + s->heads.first;
    s->c = jmb_row(p, &op->out[3], first) + s->heads.first;
    for (i = 0; i < s->rows; i++) {
        v_store(s->dt + i * 16, v_load(jmb_row(p, &op->in, first + i) + at));
        v_store(s->u + i * 16, v_load(jmb_row(p, &op->out[0], first + i) + at));
        v_store(s->z + i * 16, v_load(jmb_row(p, &op->out[1], first + i) + at));
        if (at + 16 <= op->in.width) continue;
        JMB_ANY_CONTENT(s->dt + i * 16, 64); /* lanes beyond the channels */
        JMB_ANY_CONTENT(s->u + i * 16, 64);
        JMB_ANY_CONTENT(s->z + i * 16, 64);
    }
    for (i = 0; i < s->rows; i++) {
        v16 dt = JMB_K(jmb_softplus)(v_add(v_load(s->dt + i * 16), bias));
        v_store(s->dt + i * 16, v_mul(dt, v_set1(1.44269504f))); /* exp(dt A) = 2^(dt A / ln 2) */
        v_store(s->dtu + i * 16, v_mul(dt, v_load(s->u + i * 16)));
        v_store(s->y + i * 16, v_set1(0));
    }
}

/* h = exp(dt A) h + dt u B, y += h C for `count` states from n on, over the rows of a block. `mixed`: the
 * channels may belong to several heads. */
JMB_FN void JMB_K(jmb_scan_tile)(jmb_scan_in *s, const uint8_t *a, float *h, size_t n, int count, bool mixed)
{
    const float *b = s->b + n, *c = s->c + n;
    v16 state[JMB_SCAN_STATES];
    size_t row;
    int i;
    a += n * 64;
    h += n * 16;
    JMB_UNROLL
    for (i = 0; i < count; i++) state[i] = v_load(h + i * 16);
    for (row = 0; row < s->rows; row++, b += s->stride, c += s->stride) {
        v16 dt = v_load(s->dt + row * 16), dtu = v_load(s->dtu + row * 16), y = v_load(s->y + row * 16);
        JMB_UNROLL
        for (i = 0; i < count; i++) {
            v16 decay = JMB_K(jmb_exp2)(v_mul(dt, v_load_le(a + i * 64)));
            v16 in = v_mul(dtu, mixed ? JMB_K(jmb_of_heads)(b + i, &s->heads) : v_set1(b[i]));
            state[i] = v_fma(state[i], decay, in);
            y = v_fma(state[i], mixed ? JMB_K(jmb_of_heads)(c + i, &s->heads) : v_set1(c[i]), y);
        }
        v_store(s->y + row * 16, y);
    }
    JMB_UNROLL
    for (i = 0; i < count; i++) v_store(h + i * 16, state[i]);
}

/* Selective scan (Gu and Dao 2023) of 16 channels:
 *     dt = softplus(dt + bias);  h_n = exp(dt A_n) h_n + dt u B_n;  y = sum_n h_n C_n + D u;  out = y silu(z) */
JMB_FN void JMB_K(jmb_scan_channels)(const jmb_pass *p, const jmb_op *op, const jmb_span *span, size_t at)
{
    size_t d_state = op->block->d_state, first = span->first, stop = first + span->rows, n, i;
    const uint8_t *a = op->w[0]->data + at * d_state * 4;
    v16 skip = v_load_le(op->w[1]->data + at * 4);
    float *h = span->state + op->state_at + at * d_state;
    jmb_scan_in s;
    JMB_K(jmb_find_heads)(op->block, at, &s.heads);
    for (; first < stop; first += s.rows) {
        s.rows = stop - first < JMB_SCAN_ROWS ? stop - first : JMB_SCAN_ROWS;
        JMB_K(jmb_scan_fetch)(&s, p, op, at, first);
        n = 0;
        if (s.heads.same)
            for (; n + JMB_SCAN_STATES <= d_state; n += JMB_SCAN_STATES)
                JMB_K(jmb_scan_tile)(&s, a, h, n, JMB_SCAN_STATES, false);
        for (; n < d_state; n++) JMB_K(jmb_scan_tile)(&s, a, h, n, 1, true);
        for (i = 0; i < s.rows; i++) {
            v16 y = v_fma(skip, v_load(s.u + i * 16), v_load(s.y + i * 16));
            v_store(jmb_row(p, &op->out[0], first + i) + at, v_mul(y, v_silu(v_load(s.z + i * 16))));
        }
    }
}

JMB_KERNEL void JMB_K(jmb_run_scan)(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    jmb_slab slab = jmb_slab_of(p, op->out[0].width, task);
    size_t at;
    for (at = slab.begin; at < slab.end && slab.span->session; at += 16)
        JMB_K(jmb_scan_channels)(p, op, slab.span, at);
}

/* One block of rows of one head: its dt and decay, and up to JMB_SCAN2_COLUMNS groups of 16 channels. */
typedef struct JMB_K(jmb_scan2_block) {
    size_t rows, stride; /* floats from one row of B or C to the next */
    const float *b, *c;
    float dt[JMB_SCAN_ROWS], decay[JMB_SCAN_ROWS];
    float dtu[JMB_SCAN2_COLUMNS][JMB_SCAN_ROWS * 16], y[JMB_SCAN2_COLUMNS][JMB_SCAN_ROWS * 16];
} JMB_K(jmb_scan2_block);
#define jmb_scan2_in JMB_K(jmb_scan2_block)

/* dt is clamped as the reference does in prefill, for every token alike. */
JMB_FN void JMB_K(jmb_scan2_fetch)(jmb_scan2_in *s, const jmb_pass *p, const jmb_op *op, size_t head, size_t first)
{
    const jmb_block *m = op->block;
    size_t group = head / (m->heads / m->n_groups), i;
    v16 a = v_set1(jmb_load_f32(op->w[0]->data + head * 4)), dt;
    v16 bias = v_set1(jmb_load_f32(op->bias[0]->data + head * 4));
    s->stride = op->out[2].stride;
    s->b = jmb_row(p, &op->out[2], first) + group * m->d_state;
    s->c = jmb_row(p, &op->out[3], first) + group * m->d_state;
    for (i = 0; i < s->rows; i++) {
        float x = jmb_row(p, &op->in, first + i)[head];
        if (i % 16 == 0) v_store(s->dt + i, v_set1(x)); /* fills the lanes beyond the rows */
        else s->dt[i] = x;
    }
    for (i = 0; i < s->rows; i += 16) {
        dt = JMB_K(jmb_softplus)(v_add(v_load(s->dt + i), bias));
        dt = v_min(v_set1(m->dt_max), v_max(v_set1(m->dt_min), dt)); /* in this order NaN stays NaN */
        v_store(s->dt + i, dt);
        v_store(s->decay + i, v_exp(v_mul(dt, a)));
    }
}

/* h = decay h + dt u B, y += h C for JMB_SCAN2_STATES states from n on of all columns, over the rows of a block. */
JMB_FN void JMB_K(jmb_scan2_tile)(jmb_scan2_in *s, size_t d_state, float *h, size_t n)
{
    const float *b = s->b + n, *c = s->c + n;
    v16 state[JMB_SCAN2_COLUMNS][JMB_SCAN2_STATES];
    size_t row;
    int k, i;
    h += n * 16;
    JMB_UNROLL
    for (k = 0; k < JMB_SCAN2_COLUMNS; k++) {
        JMB_UNROLL
        for (i = 0; i < JMB_SCAN2_STATES; i++) state[k][i] = v_load(h + (size_t)k * d_state * 16 + i * 16);
    }
    for (row = 0; row < s->rows; row++, b += s->stride, c += s->stride) {
        v16 decay = v_set1(s->decay[row]);
        JMB_UNROLL
        for (k = 0; k < JMB_SCAN2_COLUMNS; k++) {
            v16 dtu = v_load(s->dtu[k] + row * 16), y = v_load(s->y[k] + row * 16);
            JMB_UNROLL
            for (i = 0; i < JMB_SCAN2_STATES; i++) {
                state[k][i] = v_fma(state[k][i], decay, v_mul(dtu, v_set1(b[i])));
                y = v_fma(state[k][i], v_set1(c[i]), y);
            }
            v_store(s->y[k] + row * 16, y);
        }
    }
    JMB_UNROLL
    for (k = 0; k < JMB_SCAN2_COLUMNS; k++) {
        JMB_UNROLL
        for (i = 0; i < JMB_SCAN2_STATES; i++) v_store(h + (size_t)k * d_state * 16 + i * 16, state[k][i]);
    }
}

/* The same for all states from n on of one column: for single rows, which have no use for registers, and rests. */
JMB_FN void JMB_K(jmb_scan2_column)(jmb_scan2_in *s, size_t d_state, float *h, size_t n, size_t k)
{
    size_t row, j;
    for (row = 0; row < s->rows; row++) {
        const float *b = s->b + row * s->stride, *c = s->c + row * s->stride;
        v16 decay = v_set1(s->decay[row]), dtu = v_load(s->dtu[k] + row * 16), y = v_load(s->y[k] + row * 16);
        for (j = n; j < d_state; j++) {
            v16 state = v_fma(v_load(h + j * 16), decay, v_mul(dtu, v_set1(b[j])));
            v_store(h + j * 16, state);
            y = v_fma(state, v_set1(c[j]), y);
        }
        v_store(s->y[k] + row * 16, y);
    }
}

/* Columns of 16 channels of a head: `out` holds u of the first row, and takes y. */
JMB_FN void JMB_K(jmb_scan2_columns)(
    jmb_scan2_in *s, const jmb_op *op, float *out, float *h, size_t columns, size_t lanes, v16 skip)
{
    size_t d_state = op->block->d_state, stride = op->out[0].stride, n = 0, k, row;
    for (row = 0; row < s->rows; row++)
        for (k = 0; k < columns; k++) {
            v16 u = v_load_part(out + row * stride + k * 16, lanes);
            v_store(s->dtu[k] + row * 16, v_mul(v_set1(s->dt[row]), u));
            v_store(s->y[k] + row * 16, v_set1(0));
        }
    if (columns == JMB_SCAN2_COLUMNS && s->rows > 1)
        for (; n + JMB_SCAN2_STATES <= d_state; n += JMB_SCAN2_STATES) JMB_K(jmb_scan2_tile)(s, d_state, h, n);
    for (k = 0; k < columns && n < d_state; k++) JMB_K(jmb_scan2_column)(s, d_state, h + k * d_state * 16, n, k);
    for (row = 0; row < s->rows; row++)
        for (k = 0; k < columns; k++) {
            float *y = out + row * stride + k * 16;
            v_store_part(y, v_fma(skip, v_load_part(y, lanes), v_load(s->y[k] + row * 16)), lanes);
        }
}

/* Mamba-2 (Dao and Gu 2024), one head: the decay exp(dt A) is one number a head and token, B and C are
 * those of the head's group. */
JMB_FN void JMB_K(jmb_scan2_head)(const jmb_pass *p, const jmb_op *op, const jmb_span *span, size_t head)
{
    size_t width = op->block->d_inner / op->block->heads, d_state = op->block->d_state, i;
    size_t first = span->first, stop = first + span->rows;
    float *state = span->state + op->state_at + head * jmb_pad16(width) * d_state;
    v16 skip = v_set1(jmb_load_f32(op->w[1]->data + head * 4));
    jmb_scan2_in s;
    for (; first < stop; first += s.rows) {
        s.rows = stop - first < JMB_SCAN_ROWS ? stop - first : JMB_SCAN_ROWS;
        JMB_K(jmb_scan2_fetch)(&s, p, op, head, first);
        for (i = 0; i < width;) {
            size_t left = width - i, columns = left < JMB_SCAN2_COLUMNS * 16 ? 1 : JMB_SCAN2_COLUMNS;
            float *out = jmb_row(p, &op->out[0], first) + head * width + i;
            JMB_K(jmb_scan2_columns)(&s, op, out, state + i * d_state, columns, left < 16 ? left : 16, skip);
            i += columns * 16;
        }
    }
}

JMB_KERNEL void JMB_K(jmb_run_scan2)(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    const jmb_span *span = p->spans + task / op->block->heads;
    if (span->session) JMB_K(jmb_scan2_head)(p, op, span, task % op->block->heads);
}

/* y = w v / rms(v) in each of n_groups, v = y silu(z): the gate comes before the norm. */
JMB_KERNEL void JMB_K(jmb_run_gate)(const jmb_pass *p, const jmb_op *op, uint32_t row)
{
    size_t width = op->block->d_inner / op->block->n_groups, g, i;
    const uint8_t *w = op->w[0]->data;
    const float *z = jmb_row(p, &op->in, row);
    float *y = jmb_row(p, &op->out[0], row);
    for (i = 0; i < op->block->d_inner; i += 16) v_store(y + i, v_mul(v_load(y + i), v_silu(v_load(z + i))));
    for (g = 0; g < op->block->n_groups; g++) {
        v16 scale = JMB_K(jmb_rms)(y + g * width, width, op->eps);
        for (i = g * width; i < (g + 1) * width; i += 16) {
            size_t n = (g + 1) * width - i < 16 ? (g + 1) * width - i : 16;
            v_store_part(y + i, v_mul(v_mul(v_load_part(y + i, n), scale), v_load_part_le(w + i * 4, n)), n);
        }
    }
}

/* ---- attention ------------------------------------------------------------------------------ */

/* Rotates the pairs (i, i + D/2) of one head by `angle` i. */
JMB_FN void JMB_K(jmb_rotate)(float *x, size_t half, const float *sine, const float *cosine)
{
    size_t i;
    for (i = 0; i < half; i += 16) {
        size_t n = half - i < 16 ? half - i : 16;
        v16 a = v_load_part(x + i, n), b = v_load_part(x + half + i, n);
        v16 s = v_load(sine + i), c = v_load(cosine + i);
        v_store_part(x + i, v_fnma(b, s, v_mul(a, c)), n);
        v_store_part(x + half + i, v_fma(a, s, v_mul(b, c)), n);
    }
}

/* Rotary position embedding (Su et al. 2021) of one k and its q, the angle formed in single precision as the
 * reference does. */
JMB_KERNEL void JMB_K(jmb_rope)(const jmb_pass *p, const jmb_op *op, uint32_t row, uint32_t at, uint32_t g)
{
    const jmb_block *b = op->block;
    uint32_t group = b->heads / b->kv_heads;
    float sine[JMB_MAX_HEAD_DIM / 2 + 16], cosine[JMB_MAX_HEAD_DIM / 2 + 16];
    const uint8_t *frequency = op->w[0]->data;
    size_t half = b->head_dim / 2, i;
    v16 position = v_set1((float)at), s, c;
    for (i = 0; i < half; i += 16) {
        JMB_K(jmb_sincos)(v_mul(position, v_load_le(frequency + i * 4)), &s, &c);
        v_store(sine + i, s);
        v_store(cosine + i, c);
    }
    for (i = g * group; i < (g + 1) * group; i++)
        JMB_K(jmb_rotate)(jmb_row(p, &op->in, row) + i * b->head_dim, half, sine, cosine);
    JMB_K(jmb_rotate)(jmb_row(p, &op->out[0], row) + g * b->head_dim, half, sine, cosine);
}

/* Where a head of one key and value goes. */
JMB_FN void JMB_K(jmb_keep_f32)(const jmb_kv_head *h, size_t key, const float *k, const float *v)
{
    uint8_t *to_k = h->k + (key / 16 * h->dim * 16 + key % 16) * 4, *to_v = h->v + key * h->stride * 4;
    size_t i;
    for (i = 0; i < h->dim; i++) jmb_store_f32(to_k + i * 64, k[i]);
    for (i = 0; i < h->stride; i++) jmb_store_f32(to_v + i * 4, i < h->dim ? v[i] : 0);
}

JMB_FN void JMB_K(jmb_keep_f16)(const jmb_kv_head *h, size_t key, const float *k, const float *v)
{
    uint8_t *to_k = h->k + (key / 16 * h->dim * 16 + key % 16) * 2, *to_v = h->v + key * h->stride * 2;
    size_t i;
    for (i = 0; i < h->dim; i++) jmb_store_u16(to_k + i * 32, jmb_float_to_f16(k[i]));
    for (i = 0; i < h->stride; i++) jmb_store_u16(to_v + i * 2, i < h->dim ? jmb_float_to_f16(v[i]) : 0);
}

/* s8 codes of one head, `stride` of them; returns their scale. */
JMB_KERNEL float JMB_K(jmb_code_head)(const float *x, size_t dim, int8_t *codes)
{
    v16 top = v_set1(0), taint = v_set1(0), inverse, v;
    float scale;
    size_t i;
    for (i = 0; i < dim; i += 16) {
        v = v_load_part(x + i, dim - i < 16 ? dim - i : 16);
        top = v_max(top, v_max(v, v_mul(v, v_set1(-1.0f))));
        taint = v_fma(v, v_set1(0), taint);
    }
    scale = JMB_K(jmb_scale_of)(top, taint, &inverse);
    for (i = 0; i < dim; i += 16) {
        v = v_load_part(x + i, dim - i < 16 ? dim - i : 16);
        v_store_i8(codes + i, JMB_K(jmb_codes_of)(v, inverse));
    }
    return scale;
}

JMB_FN void JMB_K(jmb_keep_q8)(const jmb_kv_head *h, size_t key, const float *k, const float *v)
{
    int8_t codes[JMB_MAX_HEAD_DIM], *to_k = (int8_t *)h->k + key / 16 * h->dim * 16 + key % 16;
    size_t i;
    jmb_store_f32(h->k_scale + key * 4, JMB_K(jmb_code_head)(k, h->dim, codes));
    for (i = 0; i < h->dim; i++) to_k[i * 16] = codes[i];
    jmb_store_f32(h->v_scale + key * 4, JMB_K(jmb_code_head)(v, h->dim, (int8_t *)h->v + key * h->stride));
}

/* One KV head of one row. The cache holds rotated keys, rounded to its type; prefill reads them back like decode does.
 * What is there already is not written again: other sessions may be reading it. */
JMB_KERNEL void JMB_K(jmb_run_cache)(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    const jmb_block *b = op->block;
    uint32_t row = task / b->kv_heads, g = task % b->kv_heads;
    const jmb_span *span = jmb_span_of(p, row);
    uint32_t position = span->position + row - span->first;
    const float *k = jmb_row(p, &op->out[0], row) + g * b->head_dim;
    const float *v = jmb_row(p, &op->out[1], row) + g * b->head_dim;
    size_t key = position % JMB_PAGE;
    jmb_kv_head h;
    if (b->flags & JMB_ROPE) JMB_K(jmb_rope)(p, op, row, position, g);
    if (position < span->kept || !span->session) return;
    h = jmb_kv_head_of(p, op, span, position / JMB_PAGE, g);
    switch (span->kv_type) {
    case JAMBA_KV_F32: JMB_K(jmb_keep_f32)(&h, key, k, v); break;
    case JAMBA_KV_Q8: JMB_K(jmb_keep_q8)(&h, key, k, v); break;
    default: JMB_K(jmb_keep_f16)(&h, key, k, v); break;
    }
}

/* to[i * 16] = element from + i * step of the cache as floats, 16 at a time. Scales are left out. */
JMB_FN void JMB_K(jmb_widen)(const uint8_t *kv, jamba_kv_type type, size_t from, size_t step, size_t count, float *to)
{
    size_t i;
    switch (type) {
    case JAMBA_KV_F32:
        for (i = 0; i < count; i++) v_store(to + i * 16, v_load_le(kv + (from + i * step) * 4));
        break;
    case JAMBA_KV_Q8:
        for (i = 0; i < count; i++) v_store(to + i * 16, v_load_i8((const int8_t *)kv + from + i * step));
        break;
    default:
        for (i = 0; i < count; i++) v_store(to + i * 16, v_load_f16(kv + (from + i * step) * 2));
        break;
    }
}

/* sum[t] = fma(x[t][at + i], vectors[i * 16...], sum[t]) for i = 0, 1, ...: a chain for each of m. */
JMB_FN void JMB_K(jmb_chains)(
    const float *vectors, size_t count, const float *const *x, size_t at, const int m, v16 *sum)
{
    v16 s[8];
    size_t i;
    int t;
    JMB_UNROLL
    for (t = 0; t < m; t++) s[t] = sum[t];
    for (i = 0; i < count; i++) {
        v16 v = v_load(vectors + i * 16);
        JMB_UNROLL
        for (t = 0; t < m; t++) s[t] = v_fma(v, v_set1(x[t][at + i]), s[t]);
    }
    JMB_UNROLL
    for (t = 0; t < m; t++) sum[t] = s[t];
}

JMB_KERNEL void JMB_K(jmb_all_chains)(
    const float *vectors, size_t count, const float *const *x, size_t at, int n, v16 *sum)
{
    int t = 0;
    for (; t + 8 <= n; t += 8) JMB_K(jmb_chains)(vectors, count, x + t, at, 8, sum + t);
    for (; t + 4 <= n; t += 4) JMB_K(jmb_chains)(vectors, count, x + t, at, 4, sum + t);
    for (; t + 2 <= n; t += 2) JMB_K(jmb_chains)(vectors, count, x + t, at, 2, sum + t);
    if (t < n) JMB_K(jmb_chains)(vectors, count, x + t, at, 1, sum + t);
}

/* Queries of one KV head against one page. */
typedef struct JMB_K(jmb_queries) {
    int n;
    const float *q[JMB_QUERIES];
    size_t keys[JMB_QUERIES]; /* that each may see, ascending */
    float *partial[JMB_QUERIES]; /* out [stride], then maximum and sum */
    float score[JMB_QUERIES][JMB_PAGE];
} JMB_K(jmb_queries);
#define jmb_queries_of JMB_K(jmb_queries)

/* score = scale q K for each query, -3e38 for keys that it may not see. */
JMB_KERNEL void JMB_K(jmb_scores)(const jmb_kv_head *h, float scale, jmb_queries_of *a)
{
    float wide[JMB_WIDE * 16];
    size_t key, i;
    int t;
    for (key = 0; key < a->keys[a->n - 1]; key += 16) {
        v16 sum[JMB_QUERIES];
        for (t = 0; t < a->n; t++) sum[t] = v_set1(0);
        for (i = 0; i < h->dim; i += JMB_WIDE) {
            size_t count = h->dim - i < JMB_WIDE ? h->dim - i : (size_t)JMB_WIDE;
            JMB_K(jmb_widen)(h->k, h->type, key * h->dim + i * 16, 16, count, wide);
            JMB_K(jmb_all_chains)(wide, count, a->q, i, a->n, sum);
        }
        for (t = 0; t < a->n; t++) {
            v16 lane = JMB_K(jmb_iota)((float)key);
            if (h->type == JAMBA_KV_Q8) sum[t] = v_mul(sum[t], v_load_le(h->k_scale + key * 4));
            sum[t] = v_mul(sum[t], v_set1(scale));
            v_store(a->score[t] + key, v_select_gt(v_set1((float)a->keys[t]), lane, sum[t], v_set1(-3e38f)));
        }
    }
}

/* Scores to weights exp(score - maximum), 0 for keys not seen; keeps maximum and sum. Values of q8 get
 * their scale through the weights. */
JMB_FN void JMB_K(jmb_weights)(const jmb_kv_head *h, float *score, size_t keys, float *partial)
{
    v16 top = v_set1(-3e38f), sum = v_set1(0), limit = v_set1((float)keys), w;
    size_t key;
    for (key = 0; key < keys; key += 16) top = v_max(v_load(score + key), top);
    partial[h->stride] = v_highest(top);
    top = v_set1(partial[h->stride]);
    for (key = 0; key < keys; key += 16) {
        w = v_exp(v_sub(v_load(score + key), top));
        w = v_select_gt(limit, JMB_K(jmb_iota)((float)key), w, v_set1(0));
        sum = v_add(sum, w);
        v_store(score + key, h->type == JAMBA_KV_Q8 ? v_mul(w, v_load_le(h->v_scale + key * 4)) : w);
    }
    partial[h->stride + 1] = v_sum(sum);
}

/* out = weights V, for each query a chain over its keys. */
JMB_KERNEL void JMB_K(jmb_values)(const jmb_kv_head *h, jmb_queries_of *a)
{
    float wide[JMB_WIDE * 16];
    const float *score[JMB_QUERIES];
    v16 sum[JMB_QUERIES];
    size_t i, key, most = a->keys[a->n - 1], common = a->keys[0];
    int t;
    for (t = 0; t < a->n; t++) score[t] = a->score[t];
    for (key = 0; key < most; key += JMB_WIDE) {
        size_t count = most - key < JMB_WIDE ? most - key : (size_t)JMB_WIDE;
        size_t shared = common <= key ? 0 : common - key < count ? common - key : count;
        for (i = 0; i < h->dim; i += 16) {
            JMB_K(jmb_widen)(h->v, h->type, key * h->stride + i, h->stride, count, wide);
            for (t = 0; t < a->n; t++) sum[t] = key ? v_load(a->partial[t] + i) : v_set1(0);
            JMB_K(jmb_all_chains)(wide, shared, score, key, a->n, sum);
            for (t = 0; t < a->n; t++) { /* the last queries of a prompt see a few keys more */
                size_t own = a->keys[t] > key + shared ? a->keys[t] - key - shared : 0;
                if (own > count - shared) own = count - shared;
                JMB_K(jmb_all_chains)(wide + shared * 16, own, score + t, key + shared, 1, sum + t);
                v_store(a->partial[t] + i, sum[t]);
            }
        }
    }
}

/* Softmax over one page, of some queries of one KV head. */
JMB_KERNEL void JMB_K(jmb_run_attend)(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    const jmb_block *b = op->block;
    uint32_t pages = jmb_window_pages(p), slot = task % pages, page = p->window + slot;
    uint32_t group = b->heads / b->kv_heads, g = task / pages % b->kv_heads, most = jmb_query_count(p, b);
    uint32_t tile = task / pages / b->kv_heads, query, stop;
    const jmb_span *span = p->spans;
    jmb_queries_of a;
    jmb_kv_head h;
    int t;
    for (; tile >= jmb_query_tiles(p, span, b); span++) tile -= jmb_query_tiles(p, span, b);
    query = tile * most;
    stop = span->rows * group - query < most ? span->rows * group : query + most;
    while (query < stop && span->position + query / group < page * JMB_PAGE) query++; /* rows before this page */
    if (query >= stop || !span->session) return;
    h = jmb_kv_head_of(p, op, span, page, g);
    a.n = 0;
    do {
        uint32_t row = query / group, head = query % group;
        size_t keys = span->position + row + 1 - page * JMB_PAGE;
        a.q[a.n] = jmb_row(p, &op->in, span->first + row) + (g * group + head) * b->head_dim;
        a.keys[a.n] = keys < JMB_PAGE ? keys : (size_t)JMB_PAGE;
        a.partial[a.n++] = jmb_partial(p, b, 1 + slot, span->first + row, g * group + head);
    } while (++query < stop);
    JMB_K(jmb_scores)(&h, b->scale, &a);
    for (t = 0; t < a.n; t++) JMB_K(jmb_weights)(&h, a.score[t], a.keys[t], a.partial[t]);
    JMB_K(jmb_values)(&h, &a);
}

/* Running softmax (Milakov and Gimelshein 2018): adds one page's block to what stands. */
JMB_FN void JMB_K(jmb_merge_page)(float *sum, const float *page, size_t stride)
{
    float highest = sum[stride] > page[stride] ? sum[stride] : page[stride], lanes[16];
    v16 old = v_exp(v_set1(sum[stride] - highest)), fresh = v_exp(v_set1(page[stride] - highest));
    size_t i;
    v_store(lanes, v_fma(v_set1(page[stride + 1]), fresh, v_mul(v_set1(sum[stride + 1]), old)));
    sum[stride] = highest;
    sum[stride + 1] = lanes[0];
    for (i = 0; i < stride; i += 16)
        v_store(sum + i, v_fma(v_load(page + i), fresh, v_mul(v_load(sum + i), old)));
}

/* The pages of the window in order, for one row and query head; after its last page the result. */
JMB_KERNEL void JMB_K(jmb_run_merge)(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    const jmb_block *b = op->block;
    uint32_t row = task / b->heads, head = task % b->heads, slot;
    const jmb_span *span = jmb_span_of(p, row);
    uint32_t pages = (span->position + row - span->first) / JMB_PAGE + 1, window = jmb_window_pages(p);
    float *sum = jmb_partial(p, b, 0, row, head), *out = jmb_row(p, &op->out[0], row) + head * b->head_dim;
    size_t stride = jmb_pad16(b->head_dim), i;
    if (p->window >= pages) return;
    if (p->window == 0) {
        memset(sum, 0, (stride + 16) * sizeof *sum);
        sum[stride] = -3e38f;
    }
    for (slot = 0; slot < window && p->window + slot < pages; slot++)
        JMB_K(jmb_merge_page)(sum, jmb_partial(p, b, 1 + slot, row, head), stride);
    if (p->window + window >= pages)
        for (i = 0; i < b->head_dim; i++) out[i] = sum[i] / sum[stride + 1];
}

static const jmb_kernels JMB_K(jmb_kernels_of) = { JMB_PASS_NAME,
    { jmb_run_embed, JMB_K(jmb_run_adapt_embed), JMB_K(jmb_run_adapt), jmb_run_beside, JMB_K(jmb_run_sum),
        JMB_K(jmb_run_norm), JMB_K(jmb_run_quantise),
        JMB_K(jmb_run_linear), JMB_K(jmb_run_conv), JMB_K(jmb_run_scan), JMB_K(jmb_run_scan2), JMB_K(jmb_run_gate),
        JMB_K(jmb_run_cache), JMB_K(jmb_run_attend), JMB_K(jmb_run_merge), JMB_K(jmb_run_route), jmb_run_group,
        JMB_K(jmb_run_linear), JMB_K(jmb_run_linear), JMB_K(jmb_run_combine), jmb_run_keep },
    JMB_K(jmb_run_exp), JMB_K(jmb_code_head) };

#endif /* JMB_PASS */

#ifndef JMB_PASS

/* ===========================================================================================
 * >>dispatch - the instruction set, and the floating-point environment
 * =========================================================================================== */

#if JMB_X86_KERNELS

static void jmb_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t r[4])
{
#if defined(_MSC_VER)
    __cpuidex((int *)r, (int)leaf, (int)subleaf);
#else
    if (!__get_cpuid_count(leaf, subleaf, &r[0], &r[1], &r[2], &r[3])) memset(r, 0, 4 * sizeof *r);
#endif
}

/* Register sets that the operating system saves: bits 1-2 for AVX, 5-7 besides for AVX-512. */
static uint32_t jmb_xgetbv(void)
{
#if defined(_MSC_VER) && !defined(__clang__)
    return (uint32_t)_xgetbv(0);
#else
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
#endif
}

#if JMB_AVXVNNI_KERNELS
static bool jmb_has_avxvnni(void)
{
    uint32_t seven[4];
    jmb_cpuid(7, 1, seven);
    return (seven[0] & 1u << 4) != 0;
}
#endif

static jamba_cpu jmb_detect_cpu(void)
{
    uint32_t one[4], seven[4], saved;
    const uint32_t avx = 1u << 28 | 1u << 12 | 1u << 29; /* AVX, FMA, F16C */
    const uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    jmb_cpuid(1, 0, one);
    if (!(one[2] & 1u << 27) || (one[2] & avx) != avx) return JAMBA_CPU_SCALAR;
    jmb_cpuid(7, 0, seven);
    saved = jmb_xgetbv();
    if ((saved & 6) != 6 || !(seven[1] & 1u << 5)) return JAMBA_CPU_SCALAR;
    if ((saved & 0xe6) == 0xe6 && (seven[1] & avx512) == avx512 && (seven[2] & 1u << 11)) return JAMBA_CPU_AVX512;
#if JMB_AVXVNNI_KERNELS
    if (jmb_has_avxvnni()) return JAMBA_CPU_AVXVNNI;
#endif
    return JAMBA_CPU_AVX2;
}

static const jmb_kernels *jmb_kernels_for(jamba_cpu cpu)
{
    switch (cpu) {
    case JAMBA_CPU_SCALAR: return &jmb_kernels_of_scalar;
    case JAMBA_CPU_AVX2: return &jmb_kernels_of_avx2;
#if JMB_AVXVNNI_KERNELS
    case JAMBA_CPU_AVXVNNI: return jmb_has_avxvnni() ? &jmb_kernels_of_avxvnni : NULL; /* AVX-512 may lack it */
#endif
    case JAMBA_CPU_AVX512: return &jmb_kernels_of_avx512;
    default: return NULL;
    }
}

#elif JMB_NEON_KERNELS

static bool jmb_has_dotprod(void)
{
#if defined(__ARM_FEATURE_DOTPROD) || defined(__APPLE__)
    return true;
#elif defined(__linux__)
    return (getauxval(AT_HWCAP) & (1ul << 20)) != 0; /* HWCAP_ASIMDDP */
#else
    return false;
#endif
}

#if JMB_I8MM_KERNELS
static bool jmb_has_i8mm(void)
{
#if defined(__ARM_FEATURE_MATMUL_INT8)
    return true;
#elif defined(__linux__)
    return (getauxval(AT_HWCAP2) & (1ul << 13)) != 0; /* HWCAP2_I8MM */
#else
    return false;
#endif
}
#endif

static jamba_cpu jmb_detect_cpu(void)
{
    return JAMBA_CPU_NEON;
}

static const jmb_kernels *jmb_kernels_for(jamba_cpu cpu)
{
    if (cpu == JAMBA_CPU_SCALAR) return &jmb_kernels_of_scalar;
    if (cpu != JAMBA_CPU_NEON) return NULL;
#if JMB_I8MM_KERNELS
    if (jmb_has_i8mm()) return &jmb_kernels_of_i8mm;
#endif
    return jmb_has_dotprod() ? &jmb_kernels_of_dotprod : &jmb_kernels_of_neon;
}

#elif JMB_WASM_KERNELS

static jamba_cpu jmb_detect_cpu(void)
{
    return JAMBA_CPU_WASM;
}

static const jmb_kernels *jmb_kernels_for(jamba_cpu cpu)
{
    switch (cpu) {
    case JAMBA_CPU_SCALAR: return &jmb_kernels_of_scalar;
    case JAMBA_CPU_WASM: return &jmb_kernels_of_wasm;
    default: return NULL;
    }
}

#else

static jamba_cpu jmb_detect_cpu(void)
{
    return JAMBA_CPU_SCALAR;
}

static const jmb_kernels *jmb_kernels_for(jamba_cpu cpu)
{
    (void)cpu;
    return &jmb_kernels_of_scalar;
}

#endif

/* The kernels asked for; NULL when this CPU or build lacks them. */
static const jmb_kernels *jmb_choose_kernels(jamba_cpu wanted)
{
    jamba_cpu best = jmb_detect_cpu();
    if (wanted == JAMBA_CPU_BEST) wanted = best;
    return wanted < JAMBA_CPU_SCALAR || wanted > best ? NULL : jmb_kernels_for(wanted);
}

/* Nearest even, no flush to zero, while the library computes; the caller's settings come back. */
#if JMB_X86
typedef uint32_t jmb_fp_state;

#if defined(_MSC_VER)
static jmb_fp_state jmb_fp_enter(void)
#else
JMB_TARGET("sse2") static jmb_fp_state jmb_fp_enter(void)
#endif
{
    uint32_t saved = _mm_getcsr();
    _mm_setcsr(0x1f80);
    return saved;
}

#if !defined(_MSC_VER)
JMB_TARGET("sse2")
#endif
static void jmb_fp_leave(jmb_fp_state saved)
{
    _mm_setcsr(saved);
}
#elif defined(__wasm__)
typedef int jmb_fp_state;

static jmb_fp_state jmb_fp_enter(void)
{
    return 0;
}

static void jmb_fp_leave(jmb_fp_state saved)
{
    (void)saved;
}
#else
#include <fenv.h>
typedef fenv_t jmb_fp_state;

static jmb_fp_state jmb_fp_enter(void)
{
    fenv_t saved;
    fegetenv(&saved);
    fesetenv(FE_DFL_ENV);
    return saved;
}

static void jmb_fp_leave(jmb_fp_state saved)
{
    fesetenv(&saved);
}
#endif

/* ===========================================================================================
 * >>layers - what each block computes, as operations
 *
 * One function a block, its equations on top. `x` is the residual stream, n what the block's norm makes
 * of its input; out is added to x or becomes the stream a. Temporary views last for one block.
 * =========================================================================================== */

typedef struct jmb_plan {
    jmb_op *ops; /* NULL: only count */
    uint32_t count;
    uint64_t row_floats; /* activations of one row, without logits */
    size_t codes_row;    /* bytes of one quantised row */
    uint32_t fan;        /* quantised rows a token */
    uint32_t experts, top_k; /* largest of any block */
    uint32_t slice_rows;     /* most rows of a pass under a time budget */
    uint32_t slab;           /* jmb_pass.slab */
    uint64_t state_floats;   /* recurrent state of one session, padded to lanes */
    uint64_t state_numbers;  /* the same without padding */
    uint64_t page_elements;  /* of all layers, one KV page each */
    uint64_t page_scales;    /* the same for the scales of q8 */
    uint64_t partial_floats; /* attention: partial results of one row */
    uint64_t kv_floats;      /* K and V numbers a token */
    uint32_t slots;      /* matrices that adapters can go with */
    uint32_t attention_blocks, recurrent_blocks;
} jmb_plan;

typedef struct jmb_builder {
    jmb_plan *plan;
    const jmb_metadata *model;
    const jmb_block *block;
    jmb_view x, a, e; /* a and e: width 0 where no block uses them */
    uint64_t floats;  /* of the views in use */
    jmb_op unused;   /* filled while only counting */
} jmb_builder;

static jmb_view jmb_temp(jmb_builder *b, uint32_t width, uint32_t fan)
{
    jmb_view v;
    v.width = width;
    v.stride = (uint32_t)jmb_pad16(width);
    v.fan = fan;
    v.col = 0;
    v.offset = b->floats;
    b->floats += (uint64_t)v.stride * fan;
    if (b->floats > b->plan->row_floats) b->plan->row_floats = b->floats;
    return v;
}

/* A tensor of a unit; `index` counts experts or heads. The directory is sorted by unit from its second
 * entry on. */
static const jmb_tensor *jmb_find_tensor(const jmb_builder *b, uint32_t unit, uint32_t role, uint32_t index)
{
    const jmb_tensor *t = b->model->tensors;
    uint32_t low = 1, high = b->model->header.tensors;
    if (role == JMB_ROLE_EMBED) return t;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (t[middle].unit < unit) low = middle + 1;
        else high = middle;
    }
    while (t[low].role != role || t[low].index != index) low++;
    return &t[low];
}

/* A tensor of the current block, or of the model where there is none. */
static const jmb_tensor *jmb_tensor_of(const jmb_builder *b, uint32_t role)
{
    return jmb_find_tensor(b, b->block ? b->block->unit : (uint32_t)JMB_NONE, role, 0);
}

/* Adapters are stored under the block itself. */
static const jmb_tensor *jmb_adapter_of(const jmb_builder *b, uint32_t role)
{
    return jmb_find_tensor(b, (uint32_t)(b->block - b->model->blocks), role, 0);
}

/* The matrix of a part. Adapter roles that read n directly are parts too. */
static const jmb_tensor *jmb_part_tensor(const jmb_builder *b, uint32_t role, uint32_t index)
{
    bool adapter = role == JMB_ROLE_Q_A || role == JMB_ROLE_K_A || role == JMB_ROLE_V_A || role == JMB_ROLE_GATE_UP_A;
    if (adapter) return jmb_adapter_of(b, role);
    return jmb_find_tensor(b, b->block ? b->block->unit : (uint32_t)JMB_NONE, role, index);
}

static jmb_op *jmb_emit(jmb_builder *b, jmb_op_kind kind)
{
    jmb_op *op = b->plan->ops ? &b->plan->ops[b->plan->count] : &b->unused;
    memset(op, 0, sizeof *op);
    op->kind = kind;
    op->block = b->block;
    b->plan->count++;
    return op;
}

static jmb_view jmb_emit_norm(jmb_builder *b, uint32_t role, jmb_view in, jmb_view out, float eps, uint32_t flags)
{
    jmb_op *op = jmb_emit(b, JMB_OP_NORM);
    op->in = in;
    op->out[0] = out;
    op->w[0] = jmb_tensor_of(b, role);
    op->eps = eps;
    op->flags = flags;
    return out;
}

static void jmb_emit_quantise(jmb_builder *b, jmb_view in, uint32_t flags)
{
    jmb_op *op = jmb_emit(b, JMB_OP_QUANTISE);
    size_t bytes = jmb_codes_bytes(in.width);
    op->in = in;
    op->flags = flags;
    if (bytes > b->plan->codes_row) b->plan->codes_row = bytes;
    if (in.fan > b->plan->fan) b->plan->fan = in.fan;
}

/* Columns of a view. */
static jmb_view jmb_columns(jmb_view v, uint32_t first, uint32_t width)
{
    v.col += first;
    v.width = width;
    return v;
}

enum { JMB_NO_ROLE = JMB_ROLE_COUNT };

/* One part of a linear: matrix, optional bias, optional adapter on low, destination. */
typedef struct jmb_part {
    uint32_t role, index, bias, adapter; /* bias and adapter: a role or JMB_NO_ROLE; index: head */
    jmb_view low, out;
} jmb_part;

static jmb_part jmb_part_of(uint32_t role, uint32_t bias, jmb_view out)
{
    jmb_part part;
    memset(&part, 0, sizeof part);
    part.role = role;
    part.bias = bias;
    part.adapter = JMB_NO_ROLE;
    part.out = out;
    return part;
}

static void jmb_add_part(jmb_builder *b, jmb_op *op, const jmb_part *part)
{
    uint32_t i = op->parts++;
    op->w[i] = jmb_part_tensor(b, part->role, part->index);
    op->bias[i] = part->bias == JMB_NO_ROLE ? NULL : jmb_tensor_of(b, part->bias);
    op->low_w[i] = part->adapter == JMB_NO_ROLE ? NULL : jmb_adapter_of(b, part->adapter);
    op->low[i] = part->low;
    op->out[i] = part->out;
    op->tiles[0][i] = jmb_whole_tile(op->w[i]);
    op->tiles[1][i] = jmb_sliced_tile(op->w[i], op->low_w[i], 0);
}

/* A linear of any kind, and in front of it what adapters make of its input. */
static jmb_op *jmb_emit_adaptable(jmb_builder *b, jmb_op_kind kind, jmb_view in)
{
    jmb_op *op = jmb_emit(b, JMB_OP_ADAPT);
    op->in = in;
    op = jmb_emit(b, kind);
    op->in = in;
    op->slot = b->plan->slots;
    return op;
}

/* out_i = W_i in + bias_i. Parts stored as q8 or q4 read the quantised input, which is made here. */
static void jmb_emit_linear(jmb_builder *b, jmb_view in, const jmb_part *parts, uint32_t count, uint32_t flags)
{
    uint32_t coded, i;
    for (coded = 0; coded < 2; coded++) {
        jmb_op *op = NULL;
        for (i = 0; i < count; i++) {
            if ((jmb_part_tensor(b, parts[i].role, parts[i].index)->type >= JMB_Q8) != (coded == 1)) continue;
            if (!op) {
                if (coded) jmb_emit_quantise(b, in, flags & (uint32_t)JMB_OP_LAST);
                op = jmb_emit_adaptable(b, JMB_OP_LINEAR, in);
                op->flags = flags | (coded ? (uint32_t)JMB_OP_CODES : 0u);
            }
            jmb_add_part(b, op, &parts[i]);
            b->plan->slots += parts[i].adapter == JMB_NO_ROLE ? 1 : 2;
        }
    }
}

static uint32_t jmb_bias_role(const jmb_builder *b, uint32_t role)
{
    return b->block->flags & JMB_BIAS ? role : (uint32_t)JMB_NO_ROLE;
}

/* Two streams as one: beside each other, or added. */
static void jmb_emit_join(jmb_builder *b, jmb_op_kind kind, jmb_view first, jmb_view second, jmb_view out)
{
    jmb_op *op = jmb_emit(b, kind);
    op->in = first;
    op->out[0] = out;
    op->out[1] = second;
}

/* n = norm(input), what the block computes from. */
static jmb_view jmb_input(jmb_builder *b)
{
    jmb_view n = jmb_temp(b, jmb_input_width(b->block, b->x.width), 1), in = n;
    switch (b->block->input) {
    case JMB_FROM_X: in = b->x; break;
    case JMB_FROM_A: in = b->a; break;
    case JMB_FROM_X_AND_E: jmb_emit_join(b, JMB_OP_BESIDE, b->x, b->e, n); break;
    default: jmb_emit_join(b, JMB_OP_SUM, b->x, b->a, n); break;
    }
    return jmb_emit_norm(b, JMB_ROLE_NORM, in, n, b->block->eps, 0);
}

/* x += W y + bias, or a = W y + bias */
static void jmb_output(jmb_builder *b, jmb_view y, uint32_t role, uint32_t bias)
{
    bool add = b->block->output == JMB_ADD_TO_X;
    jmb_part part = jmb_part_of(role, bias, add ? b->x : b->a);
    jmb_emit_linear(b, y, &part, 1, add ? (uint32_t)JMB_OP_ADD : 0u);
}

/* Gives `count` parts their adapters: low_i = A_i n. */
static void jmb_adapt(jmb_builder *b, jmb_view n, jmb_part *parts, const uint32_t (*roles)[2], uint32_t count)
{
    jmb_part lows[3];
    uint32_t i;
    if (!b->block->rank) return;
    for (i = 0; i < count; i++) {
        parts[i].low = jmb_temp(b, b->block->rank, 1);
        parts[i].adapter = roles[i][1];
        lows[i] = jmb_part_of(roles[i][0], JMB_NO_ROLE, parts[i].low);
    }
    jmb_emit_linear(b, n, lows, count, 0);
}

/* q, k, v = W n;  out = W_o softmax(scale q K) V, over this token and all before it; grouped queries:
 * consecutive heads share a KV head. */
static void jmb_build_attention(jmb_builder *b)
{
    const jmb_block *m = b->block;
    uint32_t heads = m->heads * m->head_dim, kv_heads = m->kv_heads * m->head_dim;
    jmb_view n = jmb_input(b), q = jmb_temp(b, heads, 1), k = jmb_temp(b, kv_heads, 1);
    jmb_view v = jmb_temp(b, kv_heads, 1), y = jmb_temp(b, heads, 1);
    static const uint32_t adapters[3][2] = { { JMB_ROLE_Q_A, JMB_ROLE_Q_B }, { JMB_ROLE_K_A, JMB_ROLE_K_B },
        { JMB_ROLE_V_A, JMB_ROLE_V_B } };
    jmb_part parts[3];
    jmb_op *op;
    parts[0] = jmb_part_of(JMB_ROLE_Q, jmb_bias_role(b, JMB_ROLE_Q_BIAS), q);
    parts[1] = jmb_part_of(JMB_ROLE_K, jmb_bias_role(b, JMB_ROLE_K_BIAS), k);
    parts[2] = jmb_part_of(JMB_ROLE_V, jmb_bias_role(b, JMB_ROLE_V_BIAS), v);
    jmb_adapt(b, n, parts, adapters, 3);
    jmb_emit_linear(b, n, parts, 3, 0);
    op = jmb_emit(b, JMB_OP_CACHE);
    op->in = q;
    op->out[0] = k;
    op->out[1] = v;
    if (m->flags & JMB_ROPE) op->w[0] = jmb_tensor_of(b, JMB_ROLE_ROPE);
    op->kv_at = b->plan->page_elements;
    op->scale_at = b->plan->page_scales;
    op = jmb_emit(b, JMB_OP_ATTEND);
    op->in = q;
    op->kv_at = b->plan->page_elements;
    op->scale_at = b->plan->page_scales;
    jmb_emit(b, JMB_OP_MERGE)->out[0] = y;
    jmb_output(b, y, JMB_ROLE_O, jmb_bias_role(b, JMB_ROLE_O_BIAS));
    b->plan->page_elements += jmb_page_elements(m);
    b->plan->page_scales += 2 * (uint64_t)m->kv_heads * JMB_PAGE;
    if (b->plan->partial_floats < m->heads * jmb_partial_floats(m))
        b->plan->partial_floats = m->heads * jmb_partial_floats(m);
    b->plan->kv_floats += 2 * (uint64_t)m->kv_heads * m->head_dim;
    b->plan->attention_blocks++;
}

static jmb_op *jmb_emit_conv(jmb_builder *b)
{
    jmb_op *op = jmb_emit(b, JMB_OP_CONV);
    op->conv_at = b->plan->state_floats;
    return op;
}

/* u = act(conv(u)) over time, in place */
static void jmb_convolve(jmb_builder *b, jmb_op *op, jmb_view u, uint32_t role, uint32_t bias)
{
    uint32_t i = op->parts++;
    op->out[i] = u;
    op->w[i] = jmb_tensor_of(b, role);
    if (b->block->flags & JMB_CONV_BIAS) op->bias[i] = jmb_tensor_of(b, bias);
    b->plan->state_floats += (uint64_t)u.stride * (b->block->d_conv - 1);
    b->plan->state_numbers += (uint64_t)u.width * (b->block->d_conv - 1);
}

/* u = scan(u) with the state that it needs */
static void jmb_emit_scan(jmb_builder *b, jmb_op_kind kind, jmb_view u, jmb_view z, jmb_view dt, jmb_view B, jmb_view C,
    uint64_t state_floats)
{
    jmb_op *op = jmb_emit(b, kind);
    op->in = dt;
    op->out[0] = u;
    op->out[1] = z;
    op->out[2] = B;
    op->out[3] = C;
    op->w[0] = jmb_tensor_of(b, JMB_ROLE_A);
    op->w[1] = jmb_tensor_of(b, JMB_ROLE_D);
    op->bias[0] = jmb_tensor_of(b, JMB_ROLE_DT_BIAS);
    op->state_at = b->plan->state_floats;
    b->plan->state_floats += state_floats;
    b->plan->state_numbers += (uint64_t)u.width * b->block->d_state;
    b->plan->recurrent_blocks++;
}

/* dt, B, C of one head, from its share of u. Rows of B and C lie side by side, padded to 16. */
static void jmb_build_mamba_head(
    jmb_builder *b, uint32_t head, jmb_view u, jmb_view low, jmb_view dt, jmb_view B, jmb_view C)
{
    const jmb_block *m = b->block;
    uint32_t width = m->d_inner / m->heads, first = head * (uint32_t)jmb_pad16(m->d_state), i;
    jmb_part parts[3];
    parts[0] = jmb_part_of(JMB_ROLE_DT_LOW, JMB_NO_ROLE, low);
    parts[1] = jmb_part_of(JMB_ROLE_B, JMB_NO_ROLE, jmb_columns(B, first, m->d_state));
    parts[2] = jmb_part_of(JMB_ROLE_C, JMB_NO_ROLE, jmb_columns(C, first, m->d_state));
    for (i = 0; i < 3; i++) parts[i].index = head;
    jmb_emit_linear(b, jmb_columns(u, head * width, width), parts, 3, 0);
    if (m->flags & JMB_DT_NORM) {
        jmb_emit_norm(b, JMB_ROLE_DT_NORM, low, low, m->inner_eps, 0);
        jmb_emit_norm(b, JMB_ROLE_B_NORM, parts[1].out, parts[1].out, m->inner_eps, 0);
        jmb_emit_norm(b, JMB_ROLE_C_NORM, parts[2].out, parts[2].out, m->inner_eps, 0);
    }
    parts[0] = jmb_part_of(JMB_ROLE_DT, JMB_NO_ROLE, jmb_columns(dt, head * width, width));
    parts[0].index = head;
    jmb_emit_linear(b, low, parts, 1, m->heads > 1 ? (uint32_t)JMB_OP_EXACT : 0u);
}

/* u, z = W n;  u = act(conv(u));  dt, B, C = W_x u, each with its norm where asked;
 * dt = softplus(W_dt dt + bias);  h = exp(dt A) h + dt u B;  y = h C + D u;  out = W_out (y silu(z))
 * With several heads, W_x, W_dt, B and C are each head's own. */
static void jmb_build_mamba(jmb_builder *b)
{
    const jmb_block *m = b->block;
    uint32_t state = (uint32_t)jmb_pad16(m->d_state) * m->heads, head;
    jmb_view n = jmb_input(b), u = jmb_temp(b, m->d_inner, 1), z = jmb_temp(b, m->d_inner, 1);
    jmb_view low = jmb_temp(b, m->dt_rank, 1), B = jmb_temp(b, state, 1), C = jmb_temp(b, state, 1);
    jmb_view dt = jmb_temp(b, m->d_inner, 1);
    jmb_part parts[2];
    parts[0] = jmb_part_of(JMB_ROLE_U, jmb_bias_role(b, JMB_ROLE_U_BIAS), u);
    parts[1] = jmb_part_of(JMB_ROLE_Z, jmb_bias_role(b, JMB_ROLE_Z_BIAS), z);
    jmb_emit_linear(b, n, parts, 2, 0);
    jmb_convolve(b, jmb_emit_conv(b), u, JMB_ROLE_CONV, JMB_ROLE_CONV_BIAS);
    for (head = 0; head < m->heads; head++) jmb_build_mamba_head(b, head, u, low, dt, B, C);
    jmb_emit_scan(b, JMB_OP_SCAN, u, z, dt, B, C, (uint64_t)u.stride * m->d_state);
    jmb_output(b, u, JMB_ROLE_OUT, jmb_bias_role(b, JMB_ROLE_OUT_BIAS));
}

/* z, u, B, C, dt = W n;  u, B, C = act(conv(u, B, C));  dt = clamp(softplus(dt + bias))
 * h = exp(dt A) h + dt u B;  y = h C + D u, A one number a head;  out = W_out norm(y silu(z)), by groups */
static void jmb_build_mamba2(jmb_builder *b)
{
    const jmb_block *m = b->block;
    uint32_t width = m->d_inner / m->heads, bc = m->n_groups * m->d_state;
    jmb_view n = jmb_input(b), u = jmb_temp(b, m->d_inner, 1), z = jmb_temp(b, m->d_inner, 1);
    jmb_view B = jmb_temp(b, bc, 1), C = jmb_temp(b, bc, 1), dt = jmb_temp(b, m->heads, 1);
    jmb_part parts[5];
    jmb_op *op;
    parts[0] = jmb_part_of(JMB_ROLE_Z, jmb_bias_role(b, JMB_ROLE_Z_BIAS), z);
    parts[1] = jmb_part_of(JMB_ROLE_U, jmb_bias_role(b, JMB_ROLE_U_BIAS), u);
    parts[2] = jmb_part_of(JMB_ROLE_B, jmb_bias_role(b, JMB_ROLE_B_BIAS), B);
    parts[3] = jmb_part_of(JMB_ROLE_C, jmb_bias_role(b, JMB_ROLE_C_BIAS), C);
    parts[4] = jmb_part_of(JMB_ROLE_DT, JMB_NO_ROLE, dt);
    jmb_emit_linear(b, n, parts, 5, 0);
    op = jmb_emit_conv(b);
    jmb_convolve(b, op, u, JMB_ROLE_CONV, JMB_ROLE_CONV_BIAS);
    jmb_convolve(b, op, B, JMB_ROLE_CONV_B, JMB_ROLE_CONV_B_BIAS);
    jmb_convolve(b, op, C, JMB_ROLE_CONV_C, JMB_ROLE_CONV_C_BIAS);
    jmb_emit_scan(b, JMB_OP_SCAN2, u, z, dt, B, C, (uint64_t)m->heads * jmb_pad16(width) * m->d_state);
    op = jmb_emit(b, JMB_OP_GATE);
    op->in = z;
    op->out[0] = u;
    op->w[0] = jmb_tensor_of(b, JMB_ROLE_GATE_NORM);
    op->eps = m->inner_eps;
    jmb_output(b, u, JMB_ROLE_OUT, jmb_bias_role(b, JMB_ROLE_OUT_BIAS));
}

/* out = W_down (act(W_gate n) * W_up n) */
static void jmb_build_mlp(jmb_builder *b)
{
    static const uint32_t adapters[1][2] = { { JMB_ROLE_GATE_UP_A, JMB_ROLE_GATE_UP_B } };
    jmb_view n = jmb_input(b), h = jmb_temp(b, b->block->intermediate, 1);
    jmb_part part = jmb_part_of(JMB_ROLE_GATE_UP, jmb_bias_role(b, JMB_ROLE_GATE_UP_BIAS), h);
    jmb_adapt(b, n, &part, adapters, 1);
    jmb_emit_linear(b, n, &part, 1, 0);
    jmb_output(b, h, JMB_ROLE_DOWN, jmb_bias_role(b, JMB_ROLE_DOWN_BIAS));
}

/* One half of the experts. w[0] is the first expert's matrix, the others follow in steps of two; all
 * experts of a block have one type. */
static void jmb_emit_experts(jmb_builder *b, jmb_op_kind kind, uint32_t role, jmb_view in, jmb_view out)
{
    const jmb_tensor *w = jmb_tensor_of(b, role);
    bool coded = w->type >= JMB_Q8;
    uint32_t assigned = kind == JMB_OP_EXPERT_DOWN ? (uint32_t)JMB_OP_ASSIGNED : 0u;
    jmb_op *op;
    if (coded) jmb_emit_quantise(b, in, assigned);
    op = jmb_emit_adaptable(b, kind, in);
    b->plan->slots += b->block->experts;
    op->out[0] = out;
    op->w[0] = w;
    op->parts = 1;
    op->tiles[0][0] = jmb_whole_tile(w);
    op->tiles[1][0] = jmb_sliced_tile(w, NULL, 0);
    op->flags = coded ? (uint32_t)JMB_OP_CODES : 0u;
}

/* weights = top k of softmax(W_r n);  out = sum over the chosen of weight * mlp_e(n) */
static void jmb_build_moe(jmb_builder *b)
{
    const jmb_block *m = b->block;
    jmb_view n = jmb_input(b), logits = jmb_temp(b, m->experts, 1), h = jmb_temp(b, m->intermediate, m->top_k);
    jmb_view y = jmb_temp(b, b->x.width, m->top_k);
    jmb_op *op;
    jmb_part router = jmb_part_of(JMB_ROLE_ROUTER, JMB_NO_ROLE, logits);
    jmb_emit_linear(b, n, &router, 1, 0);
    jmb_emit(b, JMB_OP_ROUTE)->in = logits;
    jmb_emit(b, JMB_OP_GROUP);
    jmb_emit_experts(b, JMB_OP_EXPERT_UP, JMB_ROLE_GATE_UP, n, h);
    jmb_emit_experts(b, JMB_OP_EXPERT_DOWN, JMB_ROLE_DOWN, h, y);
    op = jmb_emit(b, JMB_OP_COMBINE);
    op->in = y;
    op->out[0] = b->x;
    if (m->experts > b->plan->experts) b->plan->experts = m->experts;
    if (m->top_k > b->plan->top_k) b->plan->top_k = m->top_k;
}

/* a = W a */
static void jmb_build_linear(jmb_builder *b)
{
    jmb_view a = jmb_temp(b, b->a.width, 1);
    jmb_emit_join(b, JMB_OP_BESIDE, b->a, jmb_columns(b->a, 0, 0), a);
    jmb_output(b, a, JMB_ROLE_LINEAR, JMB_NO_ROLE);
}

/* logits = W_head norm(x), W_head = the embedding matrix where tied */
static void jmb_build_head(jmb_builder *b)
{
    const jmb_header *h = &b->model->header;
    jmb_view n, logits;
    jmb_part part;
    b->block = NULL;
    n = jmb_emit_norm(b, JMB_ROLE_FINAL_NORM, b->x, jmb_temp(b, h->hidden, 1), h->eps, JMB_OP_LAST);
    memset(&logits, 0, sizeof logits); /* jmb_pass.logits says where */
    logits.width = h->vocab;
    part = jmb_part_of(h->head ? (uint32_t)JMB_ROLE_HEAD : (uint32_t)JMB_ROLE_EMBED, JMB_NO_ROLE, logits);
    jmb_emit_linear(b, n, &part, 1, JMB_OP_LAST);
}

static void jmb_build_keep(jmb_builder *b)
{
    jmb_op *op = jmb_emit(b, JMB_OP_KEEP);
    op->in.width = (uint32_t)jmb_pad16(b->model->header.vocab);
    op->state_at = b->plan->state_floats;
}

static void jmb_build_block(jmb_builder *b, const jmb_block *block)
{
    uint64_t floats = b->floats;
    b->block = block;
    switch (block->kind) {
    case JMB_ATTENTION: jmb_build_attention(b); break;
    case JMB_MAMBA: jmb_build_mamba(b); break;
    case JMB_MLP: jmb_build_mlp(b); break;
    case JMB_MOE: jmb_build_moe(b); break;
    case JMB_MAMBA2: jmb_build_mamba2(b); break;
    case JMB_LINEAR: jmb_build_linear(b); break;
    }
    b->floats = floats;
}

static bool jmb_uses_a(const jmb_block *b)
{
    return b->input == JMB_FROM_A || b->input == JMB_FROM_X_PLUS_A || b->output == JMB_SET_A;
}

static bool jmb_uses_e(const jmb_block *b)
{
    return b->input == JMB_FROM_X_AND_E;
}

static bool jmb_any_block(const jmb_metadata *model, bool (*uses)(const jmb_block *))
{
    uint32_t i;
    for (i = 0; i < model->header.blocks; i++)
        if (uses(&model->blocks[i])) return true;
    return false;
}

/* Operations whose tasks are the rows, or ranges of columns of all rows of a span; but for the last of a block, which
 * reads what the next block's temporary views replace. */
static bool jmb_runs_by_row(const jmb_op *op)
{
    switch (op->kind) {
    case JMB_OP_ADAPT_EMBED: case JMB_OP_BESIDE: case JMB_OP_SUM: case JMB_OP_NORM: case JMB_OP_QUANTISE:
    case JMB_OP_GATE:
    case JMB_OP_ROUTE: return true;
    default: return false;
    }
}

static bool jmb_runs_by_slab(const jmb_op *op)
{
    return op->kind == JMB_OP_SCAN || (op->kind == JMB_OP_CONV && op->parts == 1);
}

static bool jmb_same_view(const jmb_view *a, const jmb_view *b)
{
    return a->offset == b->offset && a->col == b->col && a->width == b->width;
}

/* Whether task i of `op` needs nothing but task i of the phase that `first` begins. */
static bool jmb_joins(const jmb_op *first, jmb_op *op)
{
    const uint32_t counted = JMB_OP_LAST | JMB_OP_ASSIGNED;
    if (jmb_runs_by_slab(first) && op->kind == JMB_OP_QUANTISE && jmb_same_view(&first->out[0], &op->in)) {
        op->flags |= JMB_OP_SLABS;
        return true;
    }
    return jmb_runs_by_row(first) && jmb_runs_by_row(op) && (first->flags & counted) == (op->flags & counted);
}

/* Phases: operations that need not wait for each other's last task run together, task by task. */
static void jmb_chain_ops(jmb_plan *plan)
{
    uint32_t i, first = 0;
    for (i = 0; i < plan->count; i++) {
        if (i == 0 || !jmb_joins(&plan->ops[first], &plan->ops[i])) first = i;
        plan->ops[first].chain++;
    }
}

/* The most rows, and the widest slabs of one row, for which no phase has a task longer than a slice, or than it has
 * at the least. */
static void jmb_fit_slices(jmb_plan *plan)
{
    jmb_pass p, one;
    uint64_t most;
    uint32_t i;
    memset(&p, 0, sizeof p);
    p.sliced = true;
    p.rows = p.wanted = 4096;
    one = p;
    one.rows = one.wanted = 1;
    one.slab = 8;
    for (i = 0; i < plan->count; i += plan->ops[i].chain) {
        const jmb_op *op = &plan->ops[i];
        bool slabs = op->kind == JMB_OP_SCAN || op->kind == JMB_OP_CONV;
        while (slabs && one.slab > 1 && jmb_phase_work(op, &one) > JMB_SLICE) one.slab--;
        most = jmb_phase_work(op, &one);
        if (most < JMB_SLICE) most = JMB_SLICE;
        p.slab = one.slab;
        while (p.rows > 1 && jmb_phase_work(op, &p) > most) p.rows -= (p.rows + 14) / 16;
    }
    plan->slice_rows = p.rows;
    plan->slab = one.slab;
}

/* Unrolls the program. Run once with plan->ops NULL to count, once to fill. */
static void jmb_build_plan(jmb_plan *plan, const jmb_metadata *model)
{
    jmb_builder b;
    jmb_op *op, *ops = plan->ops;
    uint32_t i;
    memset(plan, 0, sizeof *plan);
    memset(&b, 0, sizeof b);
    plan->ops = ops;
    plan->fan = 1;
    b.plan = plan;
    b.model = model;
    b.x = jmb_temp(&b, model->header.hidden, 1);
    if (jmb_any_block(model, jmb_uses_a)) b.a = jmb_temp(&b, model->header.hidden, 1);
    if (jmb_any_block(model, jmb_uses_e)) b.e = jmb_temp(&b, model->header.hidden, 1);
    op = jmb_emit(&b, JMB_OP_EMBED);
    op->out[0] = b.x;
    op->out[1] = b.e;
    op->w[0] = jmb_tensor_of(&b, JMB_ROLE_EMBED);
    op->slot = plan->slots++;
    op = jmb_emit(&b, JMB_OP_ADAPT_EMBED);
    op->out[0] = b.x;
    op->out[1] = b.e;
    for (i = 0; i < model->header.blocks; i++) jmb_build_block(&b, &model->blocks[i]);
    jmb_build_head(&b);
    jmb_build_keep(&b);
    if (!ops) return;
    jmb_chain_ops(plan);
    jmb_fit_slices(plan);
}

/* ===========================================================================================
 * >>model - loading
 * =========================================================================================== */

struct jamba_model {
    jmb_heap heap;
    jmb_metadata metadata;
    jmb_tokenizer tokenizer;
    jmb_plan plan;
    const jmb_kernels *kernels;
    const uint8_t *data; /* the whole file */
    void *mapping;       /* NULL unless mapped */
    uint64_t size;
};

#define JMB_UNNAMED "the file" /* what comes through callbacks */

static jamba_result jmb_fail_read(jamba_error *error, uint64_t at, const char *name)
{
    return jmb_fail(error, JAMBA_ERR_IO, at, "%s could not be read at byte %l", name, at);
}

/* Reads all of a source into the heap in pieces, with progress between them. `name` is for messages. */
static jamba_result jmb_read_all(jamba_model *model, const jamba_io *io, const char *name,
    const jamba_model_params *params, jamba_error *error)
{
    uint8_t *data, header[JMB_HEADER_BYTES];
    jmb_metadata first;
    uint64_t at;
    memset(&first, 0, sizeof first);
    if (io->size >= sizeof header && io->read(io->user, 0, header, sizeof header) != sizeof header)
        return jmb_fail_read(error, 0, name);
    JMB_TRY(jmb_parse_header(&first, header, io->size, error)); /* before reading what is no model */
    data = (uint8_t *)jmb_heap_take_raw(&model->heap, io->size, 1);
    if (!data) return jmb_no_memory(error);
    if (params->huge_pages) jmb_advise_huge(data, (size_t)io->size);
    for (at = 0; at < io->size;) {
        size_t part = io->size - at < (1u << 26) ? (size_t)(io->size - at) : (size_t)1 << 26;
        if (io->read(io->user, at, data + at, part) != part)
            return jmb_fail_read(error, at, name);
        at += part;
        if (params->progress && !params->progress(params->progress_user, "read", at, io->size))
            return jmb_fail(error, JAMBA_ERR_ABORTED, 0, "loading was stopped by the progress callback");
    }
    model->data = data;
    return JAMBA_OK;
}

static jamba_result jmb_open_path(
    jamba_model *model, const char *path, const jamba_model_params *params, jamba_error *error)
{
    jmb_file file;
    jamba_io io;
    jamba_result result = JAMBA_OK;
    bool mapped = !(JMB_HUGE_PAGES ? params->huge_pages : false);
    const char *why = jmb_file_open(&file, path);
    if (why) return jmb_fail(error, JAMBA_ERR_IO, 0, "cannot open %s: %s", path, why);
    model->size = file.size;
    if (mapped && !params->no_mmap && jmb_file_map(&file)) {
        model->mapping = file.mapping;
        model->data = (const uint8_t *)file.mapping;
    } else {
        io.read = jmb_file_read;
        io.user = &file;
        io.size = file.size;
        result = jmb_read_all(model, &io, path, params, error);
    }
    jmb_file_close(&file);
    return result;
}

static jamba_result jmb_open_memory(jamba_model *model, const void *data, size_t size, jamba_error *error)
{
    model->size = size;
    model->data = (const uint8_t *)data;
    if ((uintptr_t)data % JMB_ALIGN) {
        void *copy = jmb_heap_take_raw(&model->heap, size, 1);
        if (!copy) return jmb_no_memory(error);
        memcpy(copy, data, size);
        model->data = (const uint8_t *)copy;
    }
    return JAMBA_OK;
}

static jamba_result jmb_check_source(const jamba_source *source, jamba_error *error)
{
    int given = (source->path != NULL) + (source->data != NULL) + (source->io.read != NULL);
    if (given == 1) return JAMBA_OK;
    return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "a source needs one of path, data and io");
}

static jamba_result jmb_open_source(
    jamba_model *model, const jamba_source *source, const jamba_model_params *params, jamba_error *error)
{
    JMB_TRY(jmb_check_source(source, error));
    if (source->path) return jmb_open_path(model, source->path, params, error);
    if (source->data) return jmb_open_memory(model, source->data, source->size, error);
    model->size = source->io.size;
    return jmb_read_all(model, &source->io, JMB_UNNAMED, params, error);
}

/* Metadata is copied before it is checked, so that a mapped file that changes meanwhile cannot slip
 * past the checks. */
static jamba_result jmb_load_metadata(jamba_model *model, jamba_error *error)
{
    jmb_heap scratch = { model->heap.allocator, NULL, 0 };
    uint64_t have = model->size < JMB_HEADER_BYTES ? model->size : (uint64_t)JMB_HEADER_BYTES, size = have;
    uint8_t *copy;
    jamba_result result;
    if (have == JMB_HEADER_BYTES) size = jmb_load_u64(model->data + 24);
    if (size < have || size > model->size || size > JMB_MAX_METADATA) size = have;
    copy = (uint8_t *)jmb_heap_take(&scratch, size, 1);
    if (!copy) return jmb_no_memory(error);
    if (size) memcpy(copy, model->data, (size_t)size);
    result = jmb_parse_metadata(&model->metadata, &model->heap, copy, size, model->size, error);
    if (result == JAMBA_OK) {
        const jmb_metadata *m = &model->metadata;
        result = jmb_tokenizer_load(&model->tokenizer, &model->heap, copy + m->parts.tokenizer,
            (size_t)m->header.tokenizer_size, m->parts.tokenizer, m->header.vocab, error);
    }
    jmb_heap_free(&scratch);
    return result;
}

static jamba_result jmb_verify_tensors(const jamba_model *model, const jamba_model_params *params, jamba_error *error)
{
    const jmb_metadata *m = &model->metadata;
    char name[64];
    uint32_t i;
    for (i = 0; i < m->header.tensors; i++) {
        const jmb_tensor *t = &m->tensors[i];
        if (jmb_hash64(JMB_HASH_SEED, t->data, (size_t)t->bytes) != t->hash)
            return jmb_fail(error, JAMBA_ERR_FORMAT, t->offset,
                "tensor %s is damaged (its hash differs): copy the file again", jmb_tensor_name(t, name));
        if (params->progress && !params->progress(params->progress_user, "verify", t->offset + t->bytes, model->size))
            return jmb_fail(error, JAMBA_ERR_ABORTED, 0, "loading was stopped by the progress callback");
    }
    return JAMBA_OK;
}

static jamba_result jmb_load_plan(jamba_model *model, jamba_error *error)
{
    jmb_plan *plan = &model->plan;
    uint32_t i;
    for (i = 0; i < model->metadata.header.tensors; i++)
        model->metadata.tensors[i].data = model->data + model->metadata.tensors[i].offset;
    jmb_build_plan(plan, &model->metadata);
    if (plan->count > JMB_MAX_OPERATIONS)
        return jmb_fail(error, JAMBA_ERR_FORMAT, model->metadata.parts.program,
            "the blocks need %u operations, more than %u", plan->count, (uint32_t)JMB_MAX_OPERATIONS);
    plan->ops = (jmb_op *)jmb_heap_take(&model->heap, plan->count, sizeof *plan->ops);
    if (!plan->ops) return jmb_no_memory(error);
    jmb_build_plan(plan, &model->metadata);
    return JAMBA_OK;
}

/* Not so where intermediate results are wider, as on the x87. */
static bool jmb_rounds_to_float(void)
{
    volatile float large = 16777216.0f, one = 1.0f, rest; /* volatile: between the two calls */
    jmb_fp_state saved = jmb_fp_enter();
    rest = (large + one) - large;
    jmb_fp_leave(saved);
    return rest == 0.0f;
}

static jamba_result jmb_load(
    jamba_model *model, const jamba_source *source, const jamba_model_params *params, jamba_error *error)
{
    model->kernels = jmb_choose_kernels(params->cpu);
    if (!model->kernels)
        return jmb_fail(error, JAMBA_ERR_UNSUPPORTED, 0, "this CPU or build lacks the instruction set asked for");
    if (!jmb_rounds_to_float())
        return jmb_fail(error, JAMBA_ERR_UNSUPPORTED, 0,
            "this build computes in more than single precision: compile with -msse2 -mfpmath=sse");
    JMB_TRY(jmb_open_source(model, source, params, error));
    JMB_TRY(jmb_load_metadata(model, error));
    JMB_TRY(jmb_load_plan(model, error));
    return params->verify ? jmb_verify_tensors(model, params, error) : JAMBA_OK;
}

/* ---- small files: adapters and saved states ------------------------------------------------- */

/* The bytes of a source, in place or in memory of their own. */
typedef struct jmb_bytes {
    const uint8_t *data;
    uint64_t size;
    void *mapping; /* NULL unless mapped */
    jmb_heap heap;
} jmb_bytes;

/* Whether a file of `size` bytes that begins so is what is wanted: asked before all of it is read. */
typedef jamba_result (*jmb_head_fn)(void *user, const uint8_t *head, uint64_t size, jamba_error *error);

enum { JMB_HEAD_BYTES = 320 }; /* of the longest header */

static jamba_result jmb_bytes_read(
    jmb_bytes *b, const jamba_io *io, const char *name, jmb_head_fn check, void *user, jamba_error *error)
{
    uint8_t head[JMB_HEAD_BYTES], *data;
    size_t first = io->size < sizeof head ? (size_t)io->size : sizeof head;
    if (io->read(io->user, 0, head, first) != first) return jmb_fail_read(error, 0, name);
    JMB_TRY(check(user, head, io->size, error));
    data = (uint8_t *)jmb_heap_take_raw(&b->heap, io->size, 1);
    if (!data) return jmb_no_memory(error);
    if (io->read(io->user, 0, data, (size_t)io->size) != io->size) return jmb_fail_read(error, 0, name);
    b->data = data;
    b->size = io->size;
    return JAMBA_OK;
}

static jamba_result jmb_bytes_map(
    jmb_bytes *b, const char *path, jmb_head_fn check, void *user, jamba_error *error)
{
    jamba_result result;
    jmb_file file;
    jamba_io io;
    const char *why = jmb_file_open(&file, path);
    if (why) return jmb_fail(error, JAMBA_ERR_IO, 0, "cannot open %s: %s", path, why);
    if (jmb_file_map(&file)) {
        b->mapping = file.mapping;
        b->data = (const uint8_t *)file.mapping;
        b->size = file.size;
        result = check(user, b->data, b->size, error);
    } else {
        io.read = jmb_file_read;
        io.user = &file;
        io.size = file.size;
        result = jmb_bytes_read(b, &io, path, check, user, error);
    }
    jmb_file_close(&file);
    return result;
}

/* Whatever comes of it, jmb_bytes_close() follows. */
static jamba_result jmb_bytes_open(jmb_bytes *b, const jamba_allocator *allocator, const jamba_source *source,
    jmb_head_fn check, void *user, jamba_error *error)
{
    memset(b, 0, sizeof *b);
    b->heap.allocator = *allocator;
    JMB_TRY(jmb_check_source(source, error));
    if (source->path) return jmb_bytes_map(b, source->path, check, user, error);
    if (!source->data) return jmb_bytes_read(b, &source->io, JMB_UNNAMED, check, user, error);
    b->data = (const uint8_t *)source->data;
    b->size = source->size;
    return check(user, b->data, b->size, error);
}

static void jmb_bytes_close(jmb_bytes *b)
{
    if (b->mapping) jmb_file_unmap(b->mapping, b->size);
    jmb_heap_free(&b->heap);
}

/* ===========================================================================================
 * >>adapter - LoRA: low-rank matrices beside those of a model
 *
 * A file for one model: header, a directory sorted by block, role and index, then A and B of each
 * entry, in panels as the model's. What the directory says is compared with the model's program.
 * =========================================================================================== */

enum {
    JMB_ADAPTER_VERSION = 1, JMB_ADAPTER_BYTES = 128, /* of the header */
    JMB_ADAPTER_ENTRY = 64, JMB_MAX_RANK = 1024
};

static const uint8_t jmb_adapter_magic[8] = { 0x89, 'J', 'M', 'L', '\r', '\n', 0x1a, '\n' };

/* type, name, byte offset. Bytes not listed are zero, but 32..63 of the header: the identity of the model. */
#define JMB_ADAPTER_FIELDS(X)                    \
    X(u32, version, 8) X(u32, entries, 12)       \
    X(u64, size, 16)   /* of all */              \
    X(u64, hash, 24)   /* of all but itself */

#define JMB_LORA_FIELDS(X)                                          \
    X(u32, block, 0) X(u32, role, 4) X(u32, index, 8) X(u32, rank, 12) \
    X(u32, type, 16) X(u32, rows, 20) X(u32, cols, 24)              \
    X(u64, a, 32) X(u64, b, 40)    /* where they lie */

typedef struct jmb_adapter_header {
#define JMB_X(type, name, at) jmb_##type name;
    JMB_ADAPTER_FIELDS(JMB_X)
#undef JMB_X
} jmb_adapter_header;

typedef struct jmb_lora_entry {
#define JMB_X(type, name, at) jmb_##type name;
    JMB_LORA_FIELDS(JMB_X)
#undef JMB_X
} jmb_lora_entry;

struct jamba_adapter {
    jmb_heap heap;
    const jamba_model *model;
    const uint8_t *data; /* the whole file */
    uint64_t size;
    jmb_adapter_header header;
    jmb_lora *loras;        /* (header.entries) */
    const jmb_lora **slots; /* (plan.slots) NULL where there is none */
    uint32_t rank;          /* the highest */
};

/* A and B of a base matrix that has `rows` and `cols`. */
static void jmb_lora_shape(jmb_lora *l, const jmb_lora_entry *e)
{
    bool embed = e->role == JMB_ROLE_EMBED;
    memset(l, 0, sizeof *l);
    l->block = e->block;
    l->role = e->role;
    l->index = e->index;
    l->a.role = JMB_ROLE_DOWN; /* not paired */
    l->b.role = e->role;
    l->a.type = l->b.type = e->type;
    l->a.rows = embed ? e->rows : e->rank;
    l->a.cols = embed ? e->rank : e->cols;
    l->b.rows = embed ? e->cols : e->rows;
    l->b.cols = e->rank;
    l->a.bytes = jmb_tensor_bytes(&l->a);
    l->b.bytes = jmb_tensor_bytes(&l->b);
}

static int jmb_compare_loras(const jmb_lora *x, const jmb_lora *y)
{
    if (x->block != y->block) return x->block < y->block ? -1 : 1;
    if (x->role != y->role) return x->role < y->role ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static jamba_result jmb_parse_adapter_header(
    jmb_adapter_header *h, const uint8_t *p, uint64_t size, const jamba_model *model, jamba_error *error)
{
    if (size >= 8 && memcmp(p, jmb_adapter_magic, 8) != 0)
        return jmb_fail(error, JAMBA_ERR_FORMAT, 0, "not an adapter for jamba.h: convert one with --base");
    if (size < JMB_ADAPTER_BYTES)
        return jmb_fail(error, JAMBA_ERR_FORMAT, size, "too short for an adapter (%l bytes)", size);
#define JMB_X(type, name, at) h->name = JMB_READ_##type(p + (at));
    JMB_ADAPTER_FIELDS(JMB_X)
#undef JMB_X
    if (h->version != JMB_ADAPTER_VERSION)
        return jmb_fail(error, JAMBA_ERR_UNSUPPORTED, 8,
            "the adapter has format %u, this jamba.h reads format %u: convert it again", h->version,
            (unsigned)JMB_ADAPTER_VERSION);
    if (h->size != size || size % 8)
        return jmb_fail(error, JAMBA_ERR_FORMAT, 16, "the adapter has %l bytes and should have %l: copy it again", size,
            h->size);
    if (memcmp(p + 32, model->metadata.header.identity, 32) != 0)
        return jmb_fail(
            error, JAMBA_ERR_MISMATCH, 32, "the adapter was made for another model: convert it for this one");
    if (h->entries == 0 || h->entries > model->plan.slots)
        return jmb_fail(error, JAMBA_ERR_FORMAT, 12, "the adapter has %u matrices, the model %u", h->entries,
            model->plan.slots);
    return jmb_check_zero(p, 64, JMB_ADAPTER_BYTES, error);
}

/* One matrix of the directory, whose data begins at *end, which it moves behind them. */
static jamba_result jmb_parse_lora(jamba_adapter *a, uint32_t i, uint64_t *end, jamba_error *error)
{
    uint64_t at = JMB_ADAPTER_BYTES + (uint64_t)i * JMB_ADAPTER_ENTRY;
    const uint8_t *p = a->data + at;
    jmb_lora *l = &a->loras[i];
    jmb_lora_entry e;
#define JMB_X(type, name, at) e.name = JMB_READ_##type(p + (at));
    JMB_LORA_FIELDS(JMB_X)
#undef JMB_X
    if (e.role >= JMB_ROLE_COUNT || e.type > JMB_BF16 || e.rank == 0 || e.rank > JMB_MAX_RANK)
        return jmb_fail(error, JAMBA_ERR_FORMAT, at, "matrix %u of the adapter has role %u, type %u and rank %u", i,
            e.role, e.type, e.rank);
    jmb_lora_shape(l, &e);
    if (i > 0 && jmb_compare_loras(l - 1, l) >= 0)
        return jmb_fail(error, JAMBA_ERR_FORMAT, at, "matrix %u of the adapter is out of order", i);
    if (e.a != *end || e.b != jmb_add(e.a, l->a.bytes) || jmb_add(e.b, l->b.bytes) > a->size)
        return jmb_fail(error, JAMBA_ERR_FORMAT, at + 32, "matrix %u of the adapter lies elsewhere than it must", i);
    l->a.data = a->data + e.a;
    l->b.data = a->data + e.b;
    *end = e.b + l->b.bytes;
    if (e.rank > a->rank) a->rank = e.rank;
    JMB_TRY(jmb_check_zero(a->data, at + 28, at + 32, error));
    return jmb_check_zero(a->data, at + 48, at + JMB_ADAPTER_ENTRY, error);
}

static jamba_result jmb_parse_loras(jamba_adapter *a, jamba_error *error)
{
    uint64_t end = JMB_ADAPTER_BYTES + (uint64_t)a->header.entries * JMB_ADAPTER_ENTRY;
    uint32_t i;
    if (end > a->size)
        return jmb_fail(error, JAMBA_ERR_FORMAT, 12, "the adapter is too short for its %u matrices", a->header.entries);
    a->loras = (jmb_lora *)jmb_heap_take(&a->heap, a->header.entries, sizeof *a->loras);
    if (!a->loras) return jmb_no_memory(error);
    for (i = 0; i < a->header.entries; i++) JMB_TRY(jmb_parse_lora(a, i, &end, error));
    if (end == a->size) return JAMBA_OK;
    return jmb_fail(error, JAMBA_ERR_FORMAT, end, "the adapter has %l bytes after its matrices", a->size - end);
}

/* What goes with one matrix of the program; NULL: nothing. */
static const jmb_lora *jmb_find_lora(const jamba_adapter *a, const jmb_lora *key)
{
    uint32_t low = 0, high = a->header.entries;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = jmb_compare_loras(&a->loras[middle], key);
        if (order == 0) return &a->loras[middle];
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return NULL;
}

/* The part or expert `i` of an operation, as the directory names it. A tied head is a head. */
static void jmb_lora_key(const jamba_adapter *a, const jmb_op *op, uint32_t i, jmb_lora *key, const jmb_tensor **w)
{
    bool low = op->kind == JMB_OP_LINEAR && i >= op->parts;
    *w = jmb_of_experts(op) ? op->w[0] + 2 * i : low ? op->low_w[i - op->parts] : op->w[i];
    memset(key, 0, sizeof *key);
    key->block = op->block ? (uint32_t)(op->block - a->model->metadata.blocks) : (uint32_t)JMB_NONE;
    key->role = op->kind == JMB_OP_LINEAR && !op->block ? (uint32_t)JMB_ROLE_HEAD : (*w)->role;
    key->index = (*w)->index;
}

static jamba_result jmb_link_lora(jamba_adapter *a, const jmb_op *op, uint32_t i, uint32_t *linked, jamba_error *error)
{
    const jmb_lora *l;
    const jmb_tensor *w;
    jmb_lora key;
    char name[64];
    bool embed = op->kind == JMB_OP_EMBED;
    jmb_lora_key(a, op, i, &key, &w);
    l = jmb_find_lora(a, &key);
    if (!l) return JAMBA_OK;
    if (w->rows != (embed ? l->a.rows : l->b.rows) || w->cols != (embed ? l->b.rows : l->a.cols))
        return jmb_fail(error, JAMBA_ERR_FORMAT, JMB_ADAPTER_BYTES + (uint64_t)(l - a->loras) * JMB_ADAPTER_ENTRY + 20,
            "the adapter's matrix for %s has other dimensions", jmb_tensor_name(w, name));
    a->slots[op->slot + i] = l;
    ++*linked;
    return JAMBA_OK;
}

static uint32_t jmb_op_slots(const jmb_op *op)
{
    if (op->kind == JMB_OP_EMBED) return 1;
    if (jmb_of_experts(op)) return op->block->experts;
    return op->kind == JMB_OP_LINEAR ? jmb_adapt_slots(op) : 0;
}

/* Finds the place of each matrix in the program. */
static jamba_result jmb_link_adapter(jamba_adapter *a, jamba_error *error)
{
    const jmb_plan *plan = &a->model->plan;
    uint32_t linked = 0, o, i;
    a->slots = (const jmb_lora **)jmb_heap_take(&a->heap, plan->slots, sizeof *a->slots);
    if (!a->slots) return jmb_no_memory(error);
    for (o = 0; o < plan->count; o++)
        for (i = 0; i < jmb_op_slots(&plan->ops[o]); i++) JMB_TRY(jmb_link_lora(a, &plan->ops[o], i, &linked, error));
    if (linked == a->header.entries) return JAMBA_OK;
    return jmb_fail(error, JAMBA_ERR_FORMAT, JMB_ADAPTER_BYTES,
        "%u of the adapter's %u matrices are none of the model's", a->header.entries - linked, a->header.entries);
}

static jamba_result jmb_check_adapter_hash(const jamba_adapter *a, jamba_error *error)
{
    uint64_t hash = jmb_hash64(jmb_hash64(JMB_HASH_SEED, a->data, 24), a->data + 32, (size_t)a->size - 32);
    if (hash != a->header.hash)
        return jmb_fail(error, JAMBA_ERR_FORMAT, 24, "the adapter is damaged (its hash differs): copy it again");
    return JAMBA_OK;
}

static jamba_result jmb_adapter_head(void *user, const uint8_t *head, uint64_t size, jamba_error *error)
{
    jamba_adapter *a = (jamba_adapter *)user;
    return jmb_parse_adapter_header(&a->header, head, size, a->model, error);
}

/* Keeps the bytes in memory of its own. */
static jamba_result jmb_take_adapter(jamba_adapter *a, const jmb_bytes *bytes, jamba_error *error)
{
    uint8_t *data = (uint8_t *)jmb_heap_take_raw(&a->heap, bytes->size, 1);
    if (!data) return jmb_no_memory(error);
    memcpy(data, bytes->data, (size_t)bytes->size);
    a->data = data;
    a->size = bytes->size;
    JMB_TRY(jmb_parse_adapter_header(&a->header, data, a->size, a->model, error));
    JMB_TRY_HASH(jmb_check_adapter_hash(a, error));
    JMB_TRY(jmb_parse_loras(a, error));
    return jmb_link_adapter(a, error);
}

static jamba_result jmb_load_adapter(jamba_adapter *a, const jamba_source *source, jamba_error *error)
{
    jmb_bytes bytes;
    jamba_result result = jmb_bytes_open(&bytes, &a->heap.allocator, source, jmb_adapter_head, a, error);
    if (result == JAMBA_OK) result = jmb_take_adapter(a, &bytes, error);
    jmb_bytes_close(&bytes);
    return result;
}

/* ===========================================================================================
 * >>session - one timeline's memory, and the forward pass
 * =========================================================================================== */

enum { JMB_MAX_MARKS = 65536 }; /* of a session */

/* In front of the keys and values of JMB_PAGE tokens. Nobody writes to a page that several sessions hold. */
typedef struct jmb_page {
    struct jmb_page_block *block;
    uint32_t uses; /* atomic: sessions that hold it */
} jmb_page;

/* The pages that one session may take. Lives until that is freed and nobody else holds one. */
typedef struct jmb_page_block {
    jamba_allocator allocator;
    size_t size;   /* of this allocation */
    size_t stride; /* from page to page, their heads included */
    uint32_t count;
    uint32_t uses; /* atomic: its session, and each hold on a page */
} jmb_page_block;

/* Bits of jamba_session.turns, all zero beyond what is fed. At one place replies come before messages. */
enum {
    JMB_TURN_REPLY = 1,   /* the model's own words, behind what opens them */
    JMB_TURN_ENDED = 2,   /* a reply has ended */
    JMB_TURN_SYSTEM = 4,  /* a message, with what begins the conversation or closes the reply before */
    JMB_TURN_SAID = 8,    /* the same, of another role */
    JMB_TURN_PROPER = 16, /* that message itself, behind what comes in front */
    JMB_TURN_MESSAGE = JMB_TURN_SYSTEM | JMB_TURN_SAID,
    JMB_TURN_ANY = JMB_TURN_REPLY | JMB_TURN_MESSAGE
};

/* Text of the reply that is being written. */
typedef struct jmb_reply {
    jamba_text_stream stream;
    uint32_t at;    /* tokens fed when the stream came here */
    uint32_t size;  /* bytes of text that were not yet given, or in the last call */
    uint32_t given; /* of them in the last call */
    char *text;     /* (JMB_REPLY_TEXT) */
} jmb_reply;

enum { JMB_REPLY_TEXT = (int)JAMBA_STOP_MAX + (int)JAMBA_TEXT_MAX };

struct jamba_session {
    const jamba_model *model;
    jamba_allocator allocator;
    size_t size; /* of this allocation */
    bool huge_pages;
    jamba_executor executor;
    uint64_t (*now_us)(void *user);
    void *now_user;
    jamba_progress_fn progress;
    void *progress_user;
    jamba_logits_fn on_logits;
    void *logits_user;
    uint32_t context, chunk;
    int32_t *tokens;         /* (context) evaluated, then queued; -1 in front: left out of a saved state */
    uint32_t position, fed;  /* tokens evaluated, and evaluated or queued */
    jmb_span own;            /* its state and KV cache, as the spans of a pass have them */
    jmb_page_block *block;   /* NULL where the model has no attention */
    uint32_t held;           /* pages that own.pages holds, those of all tokens fed */
    jmb_pass pass;           /* rows == 0: between passes */
    uint32_t next_op, next_task;
    jamba_session *holder;   /* whose pass has begun on this session's tokens, or is its own; NULL: none */
    float *logits;           /* of the last pass's wanted rows */
    uint32_t logit_rows;     /* how many */
    jmb_mark *marks;         /* (mark_room) by position */
    uint32_t mark_room, mark_count, mark_every;
    uint32_t fork_chunk, fork_marks;
    uint32_t adapted;        /* tokens that were evaluated with others, or none */
    float *candidates;       /* (vocab) sampler: adjusted logits, then probabilities */
    int32_t *order;          /* (vocab) sampler */
    uint8_t *turns;          /* (context + 1) what begins in front of each token and of the next one, JMB_TURN_ */
    jmb_reply reply;
    jamba_memory memory;
    uint32_t busy; /* calls that may call back and that it is inside of */
    jamba_error error;
};

/* KV pages that `tokens` take. */
static uint32_t jmb_pages_of(uint32_t tokens)
{
    return (tokens + JMB_PAGE - 1) / JMB_PAGE;
}

static void jmb_routing_layout(jmb_routing *r, const jmb_plan *plan, uint32_t rows, jmb_layout *layout)
{
    uint64_t assigned = (uint64_t)rows * plan->top_k;
    r->expert = (int32_t *)jmb_place(layout, assigned, sizeof(int32_t));
    r->weight = (float *)jmb_place(layout, assigned, sizeof(float));
    r->start = (int32_t *)jmb_place(layout, (uint64_t)plan->experts + 1, sizeof(int32_t));
    r->row = (int32_t *)jmb_place(layout, assigned, sizeof(int32_t));
    r->place = (int32_t *)jmb_place(layout, assigned, sizeof(int32_t));
    r->used = (int32_t *)jmb_place(layout, (uint64_t)plan->experts + 1, sizeof(int32_t));
}

/* What a pass of up to `rows` tokens works in. */
static void jmb_pass_layout(jmb_pass *p, const jmb_plan *plan, uint32_t rows, jmb_layout *layout)
{
    p->capacity = rows;
    p->slab = plan->slab;
    p->page_elements = plan->page_elements;
    p->spans = (jmb_span *)jmb_place(layout, rows, sizeof *p->spans);
    p->wanted_row = (uint32_t *)jmb_place(layout, rows, sizeof *p->wanted_row);
    p->logits = (float **)jmb_place(layout, rows, sizeof *p->logits);
    p->scratch = (float *)jmb_place(layout, jmb_mul(plan->row_floats, rows), sizeof(float));
    p->partials = (float *)jmb_place(layout, jmb_mul(plan->partial_floats, 2 * (uint64_t)rows), sizeof(float));
    p->codes_row = plan->codes_row;
    p->codes = (uint8_t *)jmb_place(layout, jmb_mul(plan->codes_row, plan->fan), rows);
    jmb_routing_layout(&p->routing, plan, rows, layout);
}

static void jmb_marks_layout(jamba_session *s, jmb_layout *layout)
{
    uint64_t vocab = jmb_pad16(s->model->metadata.header.vocab), state_floats = s->model->plan.state_floats;
    float *states, *logits;
    uint32_t i;
    s->marks = (jmb_mark *)jmb_place(layout, s->mark_room, sizeof *s->marks);
    states = (float *)jmb_place(layout, jmb_mul(state_floats, s->mark_room), sizeof *states);
    logits = (float *)jmb_place(layout, jmb_mul(vocab, s->mark_room), sizeof *logits);
    for (i = 0; s->marks && i < s->mark_room; i++) {
        s->marks[i].state = states + i * (size_t)state_floats;
        s->marks[i].logits = logits + i * (size_t)vocab;
    }
}

/* Places everything a session needs, or measures it. */
static void jmb_session_layout(jamba_session *s, jmb_layout *layout)
{
    const jmb_plan *plan = &s->model->plan;
    uint64_t vocab = s->model->metadata.header.vocab, start;
    jmb_span *own = &s->own;
    jmb_place(layout, 1, sizeof *s);
    s->tokens = (int32_t *)jmb_place(layout, s->context, sizeof *s->tokens);
    own->pages = (uint8_t **)jmb_place(layout, jmb_pages_of(s->context), sizeof *own->pages);
    jmb_pass_layout(&s->pass, plan, s->chunk, layout);
    s->logits =
        (float *)jmb_place(layout, jmb_mul(jmb_pad16((size_t)vocab), s->on_logits ? s->chunk : 1), sizeof(float));
    s->candidates = (float *)jmb_place(layout, vocab, sizeof(float));
    s->order = (int32_t *)jmb_place(layout, vocab, sizeof(int32_t));
    s->turns = (uint8_t *)jmb_place(layout, (uint64_t)s->context + 1, 1);
    s->reply.text = (char *)jmb_place(layout, JMB_REPLY_TEXT, 1);
    s->memory.scratch = (size_t)layout->size;
    start = layout->size;
    own->state = (float *)jmb_place(layout, plan->state_floats, sizeof(float));
    s->memory.state = (size_t)(layout->size - start);
    start = layout->size;
    jmb_marks_layout(s, layout);
    s->memory.marks = (size_t)(layout->size - start);
}

#if defined(_OPENMP)
/* The executor of OpenMP builds; `user` carries the number of threads. */
static void jmb_openmp_run(void *user, int count, jamba_task_fn task, void *ctx)
{
    int threads = (int)(intptr_t)user, i;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (i = 0; i < count; i++) task(ctx, i);
}
#endif

static jamba_executor jmb_default_executor(int32_t threads)
{
    jamba_executor executor = { NULL, NULL, 1, false };
#if defined(_OPENMP)
    if (threads == 0) threads = omp_get_max_threads();
    if (threads > 1) {
        executor.run = jmb_openmp_run;
        executor.user = (void *)(intptr_t)threads;
        executor.width = threads;
        executor.concurrent = true;
    }
#else
    (void)threads;
#endif
    return executor;
}

static uint64_t jmb_page_bytes(const jmb_plan *plan, jamba_kv_type type)
{
    uint64_t bytes = jmb_mul(plan->page_elements, jmb_kv_bytes(type));
    return type == JAMBA_KV_Q8 ? jmb_add(bytes, jmb_mul(plan->page_scales, sizeof(float))) : bytes;
}

/* ---- pages --------------------------------------------------------------------------------- */

enum { JMB_PAGE_HEAD = JMB_ALIGN }; /* bytes in front of a page's elements, and of a block's pages */

static jmb_page *jmb_page_at(const jmb_page_block *block, uint32_t index)
{
    return (jmb_page *)(void *)((uint8_t *)(uintptr_t)block + JMB_PAGE_HEAD + index * block->stride);
}

static jmb_page *jmb_page_of(uint8_t *elements)
{
    return (jmb_page *)(void *)(elements - JMB_PAGE_HEAD);
}

static void jmb_pages_init(jmb_page_block *block, const jamba_session *s)
{
    uint32_t i;
    block->allocator = s->allocator;
    block->size = s->memory.kv;
    block->stride = JMB_PAGE_HEAD + (size_t)jmb_page_bytes(&s->model->plan, s->own.kv_type);
    block->count = (uint32_t)((block->size - JMB_PAGE_HEAD) / block->stride);
    block->uses = 1;
    JMB_ANY_CONTENT(jmb_page_at(block, 0), block->size - JMB_PAGE_HEAD); /* keys are read by sixteen, past the last */
    for (i = 0; i < block->count; i++) {
        jmb_page_at(block, i)->block = block;
        jmb_page_at(block, i)->uses = 0;
    }
}

static void jmb_block_drop(jmb_page_block *block)
{
    jamba_allocator allocator = block->allocator;
    if (JMB_COUNT_DOWN(&block->uses) == 0) allocator.free(allocator.user, block, block->size);
}

static void jmb_page_hold(jmb_page *page)
{
    JMB_COUNT_UP(&page->uses);
    JMB_COUNT_UP(&page->block->uses);
}

static void jmb_page_drop(jmb_page *page)
{
    jmb_page_block *block = page->block;
    JMB_COUNT_DOWN(&page->uses);
    jmb_block_drop(block);
}

static bool jmb_page_shared(const jamba_session *s, uint32_t index)
{
    return JMB_COUNT_OF(&jmb_page_of(s->own.pages[index])->uses) > 1;
}

/* Gives back all pages but those of the first `tokens`. */
static void jmb_pages_release(jamba_session *s, uint32_t tokens)
{
    while (s->held > jmb_pages_of(tokens)) jmb_page_drop(jmb_page_of(s->own.pages[--s->held]));
}

/* Pages that it could take after giving back all but `kept`. */
static uint32_t jmb_pages_free(const jamba_session *s, uint32_t kept)
{
    uint32_t i, n = 0;
    for (i = 0; i < s->block->count; i++) n += JMB_COUNT_OF(&jmb_page_at(s->block, i)->uses) == 0;
    for (i = kept; i < s->held; i++) n += jmb_page_of(s->own.pages[i])->block == s->block && !jmb_page_shared(s, i);
    return n;
}

/* Whether pages are there for keeping `kept` tokens and going on up to `tokens`: a page that is written to from its
 * middle on must not be shared. */
static bool jmb_pages_fit(const jamba_session *s, uint32_t kept, uint32_t tokens)
{
    uint32_t pages = jmb_pages_of(kept), more = jmb_pages_of(tokens) - pages;
    if (!s->block || tokens == kept) return true;
    if (kept % JMB_PAGE && jmb_page_shared(s, kept / JMB_PAGE)) more++;
    return more == 0 || more <= jmb_pages_free(s, pages);
}

/* One of the free pages, which jmb_pages_fit() has found; the one that lies at `index` if it can be. */
static uint8_t *jmb_page_take(const jamba_session *s, uint32_t index)
{
    uint32_t i = index % s->block->count;
    while (JMB_COUNT_OF(&jmb_page_at(s->block, i)->uses)) i = (i + 1) % s->block->count;
    jmb_page_hold(jmb_page_at(s->block, i));
    return (uint8_t *)jmb_page_at(s->block, i) + JMB_PAGE_HEAD;
}

/* A page of its own in place of a shared one. */
static void jmb_page_copy(jamba_session *s, uint32_t index)
{
    uint8_t *shared = s->own.pages[index];
    s->own.pages[index] = jmb_page_take(s, index);
    memcpy(s->own.pages[index], shared, s->block->stride - JMB_PAGE_HEAD);
    jmb_page_drop(jmb_page_of(shared));
}

/* From the `fed` tokens that it holds pages for to `tokens`. */
static void jmb_pages_grow(jamba_session *s, uint32_t tokens)
{
    if (!s->block || tokens == s->fed) return;
    if (s->fed % JMB_PAGE && jmb_page_shared(s, s->fed / JMB_PAGE)) jmb_page_copy(s, s->fed / JMB_PAGE);
    for (; s->held < jmb_pages_of(tokens); s->held++) s->own.pages[s->held] = jmb_page_take(s, s->held);
}

/* Shares the pages that nobody writes to any more, and copies what there is of the next one. */
static void jmb_pages_fork(jamba_session *s, const jamba_session *source)
{
    uint32_t full = s->own.kept / JMB_PAGE;
    if (!s->block) return;
    for (s->held = 0; s->held < full; s->held++) {
        s->own.pages[s->held] = source->own.pages[s->held];
        jmb_page_hold(jmb_page_of(s->own.pages[s->held]));
    }
    for (; s->held < jmb_pages_of(s->fed); s->held++) s->own.pages[s->held] = jmb_page_take(s, s->held);
    if (s->own.kept % JMB_PAGE) memcpy(s->own.pages[full], source->own.pages[full], s->block->stride - JMB_PAGE_HEAD);
}

/* ---- making one ---------------------------------------------------------------------------- */

static jamba_result jmb_check_allocator(const jamba_allocator *allocator, jamba_error *error)
{
    if (!allocator || (allocator->alloc && allocator->free)) return JAMBA_OK;
    return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "an allocator needs both alloc() and free()");
}

static jamba_result jmb_check_session_params(const jamba_session_params *p, jamba_error *error)
{
    if (p->context < 0 || p->context > JMB_MAX_CONTEXT)
        return jmb_fail(
            error, JAMBA_ERR_ARGUMENT, 0, "context is %d, outside 0 to %d", p->context, (int)JMB_MAX_CONTEXT);
    if (p->chunk < 0 || p->chunk > 65536)
        return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "chunk is %d, outside 0 to 65536", p->chunk);
    if (p->marks < 0 || p->marks > JMB_MAX_MARKS)
        return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "marks is %d, outside 0 to %d", p->marks, (int)JMB_MAX_MARKS);
    if (p->mark_every < 0)
        return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "mark_every is %d, below 0", p->mark_every);
    if (p->threads < 0 || p->threads > 4096)
        return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "threads is %d, outside 0 to 4096", p->threads);
    if (p->kv_type != JAMBA_KV_F16 && p->kv_type != JAMBA_KV_F32 && p->kv_type != JAMBA_KV_Q8)
        return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "kv_type %d is not known", (int)p->kv_type);
    if (p->fork_chunk < 0 || p->fork_chunk > 65536)
        return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "fork_chunk is %d, outside 0 to 65536", p->fork_chunk);
    if (p->fork_marks < 0 || p->fork_marks > JMB_MAX_MARKS)
        return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "fork_marks is %d, outside 0 to %d", p->fork_marks,
            (int)JMB_MAX_MARKS);
    if (p->executor && (!p->executor->run || p->executor->width < 1 || p->executor->width > 4096))
        return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "an executor needs run() and a width of 1 to 4096");
    return jmb_check_allocator(p->allocator, error);
}

/* Measures a session whose parameters stand, with `pages` KV pages of its own. */
static jamba_result jmb_session_measure(jamba_session *s, uint32_t pages, jamba_error *error)
{
    jmb_layout measure = { NULL, 0 };
    uint64_t page = jmb_page_bytes(&s->model->plan, s->own.kv_type), block;
    jmb_session_layout(s, &measure);
    block = page ? jmb_add(JMB_PAGE_HEAD, jmb_mul(pages, jmb_add(JMB_PAGE_HEAD, page))) : 0;
    if (measure.size > SIZE_MAX / 2 || block > SIZE_MAX / 2) return jmb_no_memory(error);
    s->size = (size_t)measure.size;
    s->memory.kv = (size_t)block;
    return JAMBA_OK;
}

/* Fills everything but the places, and measures. */
static jamba_result jmb_session_prepare(
    jamba_session *s, const jamba_model *model, const jamba_session_params *params, jamba_error *error)
{
    uint32_t trained = model->metadata.header.context;
    memset(s, 0, sizeof *s);
    JMB_TRY(jmb_check_session_params(params, error));
    s->model = model;
    s->allocator = params->allocator ? *params->allocator : model->heap.allocator;
    s->huge_pages = params->huge_pages;
    s->executor = params->executor ? *params->executor : jmb_default_executor(params->threads);
    s->now_us = params->now_us ? params->now_us : jmb_clock_us;
    s->now_user = params->now_user;
    s->progress = params->progress;
    s->progress_user = params->progress_user;
    s->on_logits = params->on_logits;
    s->logits_user = params->logits_user;
    s->context = params->context ? (uint32_t)params->context : trained < 8192 ? trained : 8192;
    s->chunk = params->chunk ? (uint32_t)params->chunk : 128;
    if (s->chunk > s->context) s->chunk = s->context;
    s->mark_room = (uint32_t)params->marks;
    s->mark_every = (uint32_t)params->mark_every;
    s->fork_chunk = params->fork_chunk ? (uint32_t)params->fork_chunk : 8;
    s->fork_marks = (uint32_t)params->fork_marks;
    s->own.kv_type = params->kv_type;
    return jmb_session_measure(s, jmb_pages_of(s->context), error);
}

static void *jmb_session_alloc(const jamba_session *s, size_t size)
{
    void *memory = s->allocator.alloc(s->allocator.user, size, JMB_ALIGN);
    if (memory && s->huge_pages) jmb_advise_huge(memory, size);
    return memory;
}

/* Makes what jmb_session_measure() has measured. State and contents are not set. */
static jamba_result jmb_session_make(jamba_session **out, const jamba_session *prepared, jamba_error *error)
{
    jmb_layout layout = { NULL, 0 };
    size_t kv = prepared->memory.kv;
    jmb_page_block *block = kv ? (jmb_page_block *)jmb_session_alloc(prepared, kv) : NULL;
    if (block || kv == 0) layout.base = (uint8_t *)jmb_session_alloc(prepared, prepared->size);
    if (!layout.base) {
        if (block) prepared->allocator.free(prepared->allocator.user, block, kv);
        return jmb_fail(error, JAMBA_ERR_MEMORY, 0,
            "no memory for a session of %z bytes: ask for a smaller context or chunk", prepared->size + kv);
    }
    *out = (jamba_session *)(void *)layout.base;
    **out = *prepared;
    jmb_session_layout(*out, &layout);
    (*out)->block = block;
    if (block) jmb_pages_init(block, *out);
    return JAMBA_OK;
}

/* The part of a pass that has begun on this session's tokens; NULL: none has. */
static jmb_span *jmb_span_in(const jamba_session *s)
{
    uint32_t i;
    for (i = 0; s->holder && i < s->holder->pass.span_count; i++)
        if (s->holder->pass.spans[i].session == s) return &s->holder->pass.spans[i];
    return NULL;
}

/* Takes a session out of the pass that has begun on it. The others' rows go on, its own come to nothing. */
static void jmb_leave_pass(jamba_session *s)
{
    jamba_session *lead = s->holder;
    jmb_span *span = jmb_span_in(s);
    bool others = false;
    uint32_t i;
    if (!span) return;
    span->session = NULL;
    span->adapters = NULL;
    for (i = 0; i < lead->pass.wanted; i++)
        if (lead->pass.wanted_row[i] - span->first < span->rows) lead->pass.logits[i] = NULL;
    for (i = 0; i < lead->pass.span_count; i++) others = others || lead->pass.spans[i].session;
    if (lead != s) s->holder = NULL;
    if (others) return;
    lead->pass.rows = 0;
    lead->holder = NULL;
}

static void jmb_session_clear(jamba_session *s)
{
    jmb_leave_pass(s);
    jmb_pages_release(s, 0);
    s->position = s->fed = s->own.kept = s->adapted = s->mark_count = s->logit_rows = 0;
    memset(s->own.state, 0, (size_t)s->model->plan.state_floats * sizeof(float));
}

static jamba_result jmb_fail_pages(jamba_session *s, size_t count, uint32_t from)
{
    return jmb_fail(&s->error, JAMBA_ERR_CONTEXT, 0,
        "%z tokens do not fit: forks hold pages of what came after token %u before", count, from);
}

/* Whether `count` more tokens can be queued. */
static jamba_result jmb_check_room(jamba_session *s, size_t count)
{
    if (count > s->context - s->fed)
        return jmb_fail(&s->error, JAMBA_ERR_CONTEXT, 0, "%z more tokens do not fit: %u of %u are used", count, s->fed,
            s->context);
    if (!jmb_pages_fit(s, s->fed, s->fed + (uint32_t)count)) return jmb_fail_pages(s, count, s->fed);
    return JAMBA_OK;
}

/* Queues tokens that stand in the log already. */
static void jmb_queue_up(jamba_session *s, size_t count)
{
    jmb_pages_grow(s, s->fed + (uint32_t)count);
    s->fed += (uint32_t)count;
}

/* ---- marks --------------------------------------------------------------------------------- */

static uint32_t jmb_last_mark(const jamba_session *s)
{
    return s->mark_count ? s->marks[s->mark_count - 1].position : 0;
}

/* The mark that stays: the one after the system messages, else the first. */
static uint32_t jmb_lasting_mark(const jamba_session *s)
{
    uint32_t head = 0, i;
    while (head < s->fed && !(s->turns[head] & JMB_TURN_SAID)) head++;
    for (i = 0; i < s->mark_count; i++)
        if (s->marks[i].position == head) return i;
    return 0;
}

/* Room for a mark at `position`: where all is in use, that of the mark whose neighbours are closest, of several never
 * the lasting one. */
static jmb_mark *jmb_next_mark(jamba_session *s, uint32_t position)
{
    uint32_t i, drop = 0, least = UINT32_MAX, lasting = jmb_lasting_mark(s);
    jmb_mark dropped;
    if (s->mark_count < s->mark_room) return &s->marks[s->mark_count];
    for (i = 0; i < s->mark_count; i++) {
        uint32_t before = i > 0 ? s->marks[i - 1].position : 0;
        uint32_t next = i + 1 < s->mark_count ? s->marks[i + 1].position : position;
        if (i == lasting || next - before >= least) continue;
        least = next - before;
        drop = i;
    }
    dropped = s->marks[drop]; /* its memory serves the next one */
    memmove(s->marks + drop, s->marks + drop + 1, (s->mark_count - 1 - drop) * sizeof *s->marks);
    s->marks[--s->mark_count] = dropped;
    return &s->marks[s->mark_count];
}

/* Whether a mark is due when the session has come to `position`: where a turn begins, and every so often. */
static bool jmb_mark_due(const jamba_session *s, uint32_t position)
{
    bool late = s->mark_every && position - jmb_last_mark(s) >= s->mark_every;
    return s->mark_room && (late || (s->turns[position] & JMB_TURN_ANY));
}

/* The place of a mark here. */
static jmb_mark *jmb_new_mark(jamba_session *s)
{
    if (s->mark_count && jmb_last_mark(s) == s->position) s->mark_count--;
    jmb_next_mark(s, s->position)->position = s->position;
    return &s->marks[s->mark_count++];
}

/* Needs the logits of the last row. Position 0 needs no mark. */
static void jmb_put_mark(jamba_session *s)
{
    size_t vocab = jmb_pad16(s->model->metadata.header.vocab);
    jmb_mark *m;
    if (s->position == 0 || !s->logit_rows) return;
    m = jmb_new_mark(s);
    memcpy(m->state, s->own.state, (size_t)s->model->plan.state_floats * sizeof(float));
    memcpy(m->logits, s->logits + (s->logit_rows - 1) * vocab, vocab * sizeof(float));
}

/* Forgets the tokens from `target` on. */
static void jmb_drop_fed(jamba_session *s, uint32_t target)
{
    s->fed = target;
    if (s->own.kept > target) s->own.kept = target;
    jmb_pages_release(s, target);
}

/* Tokens from `from` on are evaluated with other adapters than before: into pages that nobody else holds. */
static void jmb_forget_kept(jamba_session *s, uint32_t from)
{
    uint32_t fed = s->fed;
    jmb_drop_fed(s, from);
    jmb_pages_grow(s, fed);
    s->fed = fed;
    s->adapted = from;
}

/* Puts the session to the last place it can be restored to at or before `target`; what is between is queued. */
static jamba_result jmb_restore_mark(jamba_session *s, uint32_t target)
{
    size_t vocab = jmb_pad16(s->model->metadata.header.vocab), state = (size_t)s->model->plan.state_floats;
    uint32_t from = 0, anywhere = target - 1 < s->position ? target - 1 : s->position, count = s->mark_count;
    const jmb_mark *m = NULL;
    bool anew; /* with other adapters than the keys and values that are there */
    while (count && s->marks[count - 1].position > target) count--;
    if (count) m = &s->marks[count - 1];
    if (m) from = m->position;
    if (state == 0 && anywhere > from) from = anywhere; /* keys and values of all tokens are there */
    if (from < target && s->tokens[from] < 0)
        return jmb_fail(&s->error, JAMBA_ERR_ARGUMENT, 0,
            "going back to %u needs tokens that the saved state left out: go to 0, or to a mark", target);
    anew = from < target && from < s->adapted;
    if (anew && !jmb_pages_fit(s, from, target)) return jmb_fail_pages(s, target - from, from);
    jmb_leave_pass(s);
    s->mark_count = count;
    if (m && m->position == from) memcpy(s->own.state, m->state, state * sizeof(float));
    else memset(s->own.state, 0, state * sizeof(float));
    s->logit_rows = m && from == target ? 1 : 0;
    if (s->logit_rows) memcpy(s->logits, m->logits, vocab * sizeof(float));
    s->position = from;
    jmb_drop_fed(s, target);
    if (anew) jmb_forget_kept(s, from);
    return JAMBA_OK;
}

static jamba_result jmb_rewind(jamba_session *s, uint32_t target)
{
    const jmb_span *span = jmb_span_in(s);
    uint32_t done = s->position + (span ? span->rows : 0); /* with the tokens that are being worked on */
    if (target == 0) jmb_session_clear(s);
    else if (target > done || (target == done && s->logit_rows)) jmb_drop_fed(s, target);
    else return jmb_restore_mark(s, target);
    return JAMBA_OK;
}

/* Forgets the turns from `target` to `fed`. A reply that begins there stays open; a message that does goes. */
static void jmb_cut_turns(jamba_session *s, uint32_t target, uint32_t fed)
{
    uint8_t *at = &s->turns[target];
    if (target < fed) s->reply.at = 0;
    memset(at + 1, 0, fed - target);
    *at = (uint8_t)(*at & (*at & JMB_TURN_MESSAGE ? JMB_TURN_REPLY : JMB_TURN_REPLY | JMB_TURN_PROPER));
}

/* ---- running ------------------------------------------------------------------------------- */

/* Of the next `rows` tokens those up to a turn that a mark goes in front of. */
static uint32_t jmb_rows_to_turn(const jamba_session *s, uint32_t rows)
{
    uint32_t i = 1;
    while (i < rows && !(s->mark_room && (s->turns[s->position + i] & JMB_TURN_ANY))) i++;
    return i;
}

/* Takes tokens of a session's queue, at most `most` and not past a turn, into a pass. Logits are wanted for every
 * token, or for the last of the queue and of what a mark follows. */
static void jmb_pass_join(jmb_pass *p, jamba_session *s, uint32_t most)
{
    size_t vocab = jmb_pad16(s->model->metadata.header.vocab);
    uint32_t rows = jmb_rows_to_turn(s, most);
    bool due = jmb_mark_due(s, s->position + rows), last = due || s->position + rows == s->fed;
    uint32_t i;
    jmb_span *span = &p->spans[p->span_count++];
    *span = s->own;
    span->session = s;
    span->first = p->rows;
    span->rows = rows;
    span->position = s->position;
    span->tokens = s->tokens + s->position;
    s->logit_rows = 0;
    for (i = s->on_logits ? 0 : last ? rows - 1 : rows; i < rows; i++) {
        p->wanted_row[p->wanted] = p->rows + i;
        p->logits[p->wanted++] = s->logits + s->logit_rows++ * vocab;
    }
    span->mark = due ? jmb_next_mark(s, s->position + rows) : NULL;
    span->logits = due ? s->logits + (s->logit_rows - 1) * vocab : NULL;
    p->rows += rows;
}

static bool jmb_queued(jamba_session *const *sessions, size_t count)
{
    size_t i;
    for (i = 0; i < count; i++)
        if (sessions[i]->position < sessions[i]->fed) return true;
    return false;
}

/* The sessions of a pass, and the one that lends its scratch. */
static void jmb_pass_hold(jamba_session *lead, jamba_session *holder)
{
    uint32_t i;
    lead->holder = holder;
    for (i = 0; i < lead->pass.span_count; i++)
        if (lead->pass.spans[i].session) lead->pass.spans[i].session->holder = holder;
}

static void jmb_pass_busy(jamba_session *lead, uint32_t add)
{
    uint32_t i;
    lead->busy += add;
    for (i = 0; i < lead->pass.span_count; i++)
        if (lead->pass.spans[i].session) lead->pass.spans[i].session->busy += add;
}

static uint32_t jmb_lora_panels(const jmb_pass *p)
{
    uint32_t most = 0, i;
    for (i = 0; i < p->span_count; i++) {
        const jmb_adapters *a = p->spans[i].adapters;
        if (a && a->at[a->count] / 16 > most) most = a->at[a->count] / 16;
    }
    return most;
}

/* Begins a pass over what the sessions have queued, as much as it holds. */
static void jmb_pass_fill(jamba_session *lead, jamba_session *const *sessions, size_t count, bool sliced)
{
    jmb_pass *p = &lead->pass;
    uint32_t slice = lead->model->plan.slice_rows, most = sliced && slice < p->capacity ? slice : p->capacity;
    size_t i;
    p->rows = p->span_count = p->wanted = p->window = 0;
    p->sliced = sliced;
    for (i = 0; i < count && p->rows < most; i++) {
        jamba_session *s = sessions[i];
        uint32_t rows = s->fed - s->position;
        if (rows > most - p->rows) rows = most - p->rows;
        if ((s->on_logits || s->own.adapters) && rows > s->chunk) rows = s->chunk;
        if (rows) jmb_pass_join(p, s, rows);
    }
    p->lora_panels = jmb_lora_panels(p);
    lead->next_op = lead->next_task = 0;
    jmb_pass_hold(lead, lead);
}

/* Ends a pass; false when a progress callback asks to stop. */
static bool jmb_pass_end(jamba_session *lead)
{
    jmb_pass *p = &lead->pass;
    uint32_t i, row;
    bool go_on = true;
    p->rows = 0;
    jmb_pass_hold(lead, NULL);
    for (i = 0; i < p->span_count; i++) {
        jamba_session *s = p->spans[i].session;
        if (!s) continue;
        s->position += p->spans[i].rows;
        if (s->own.kept < s->position) s->own.kept = s->position;
    }
    for (i = 0; i < p->span_count; i++) {
        const jmb_span *span = &p->spans[i];
        jamba_session *s = span->session;
        if (!s) continue;
        for (row = 0; s->on_logits && row < span->rows; row++)
            s->on_logits(s->logits_user, (int32_t)(span->position + row),
                s->logits + row * jmb_pad16(s->model->metadata.header.vocab));
        if (span->mark) s->marks[s->mark_count++].position = s->position;
        else if (jmb_mark_due(s, s->position)) jmb_put_mark(s); /* a turn that was begun meanwhile */
        if (s->progress && !s->progress(s->progress_user, "eval", s->position, s->fed)) go_on = false;
    }
    return go_on;
}

static void jmb_run_chain(const jamba_session *s, const jmb_op *op, uint32_t task)
{
    const jmb_kernels *kernels = s->model->kernels;
    uint32_t i;
    for (i = 0; i < op->chain; i++) kernels->run[op[i].kind](&s->pass, &op[i], task);
}

/* The phase after the one at `op`, past those without tasks. Attention goes back to its pages while some
 * are left. */
static uint32_t jmb_phase_after(const jmb_plan *plan, jmb_pass *p, uint32_t op)
{
    if (plan->ops[op].kind == JMB_OP_MERGE) {
        p->window += jmb_window_pages(p);
        if (jmb_pages_left(p)) return op - 1;
        p->window = 0;
    }
    for (op += plan->ops[op].chain; op < plan->count; op += plan->ops[op].chain)
        if (jmb_op_tasks(&plan->ops[op], p)) break;
    return op;
}

/* A run of one pass, and its time limit. */
typedef struct jmb_run {
    /* Atomic: phase in the upper half, tasks of it that nobody has taken in the lower. 32-bit x86 aligns 64-bit numbers
     * to 4, which is too little for that. */
    JMB_ALIGNED8 uint64_t ticket;
    jamba_session *session;
    const jamba_session *timer; /* whose clock it is */
    uint64_t start, budget_us; /* budget 0: none */
    bool handed;               /* to the executor */
    const jmb_op *op;          /* of the slice, and its first task */
    uint32_t first;
    uint32_t working; /* atomic: tasks of the phase that are not done */
    uint32_t stop;    /* atomic: the budget is spent */
} jmb_run;

static bool jmb_spent(const jmb_run *run)
{
    const jamba_session *s = run->timer;
    return run->budget_us && s->now_us(s->now_user) - run->start >= run->budget_us; /* also when set back */
}

static void jmb_slice_task(void *ctx, int index)
{
    const jmb_run *run = (const jmb_run *)ctx;
    jmb_fp_state saved = jmb_fp_enter();
    jmb_run_chain(run->session, run->op, run->first + (uint32_t)index);
    jmb_fp_leave(saved);
}

static void jmb_run_slice(jmb_run *run, int count)
{
    jamba_session *s = run->session;
    int i;
    if (run->handed && count > 1) s->executor.run(s->executor.user, count, jmb_slice_task, run);
    else
        for (i = 0; i < count; i++) jmb_slice_task(run, i);
}

/* How many tasks of a phase run between two looks at the clock: one, or for each that the executor runs at once as
 * many as make a slice. */
static uint32_t jmb_tasks_at_once(const jmb_run *run)
{
    const jamba_session *s = run->session;
    uint64_t each;
    if (!run->budget_us) return (uint32_t)INT32_MAX;
    if (!run->handed) return 1;
    each = JMB_SLICE / jmb_phase_work(run->op, &s->pass);
    return (uint32_t)s->executor.width * (uint32_t)(each ? each : 1);
}

/* Phase by phase, on the calling thread or handed to the executor. */
static bool jmb_run_slices(jmb_run *run)
{
    jamba_session *s = run->session;
    const jmb_plan *plan = &s->model->plan;
    bool spent = false;
    while (s->next_op < plan->count && !spent) {
        uint32_t tasks = jmb_op_tasks(&plan->ops[s->next_op], &s->pass), count, most;
        run->op = &plan->ops[s->next_op];
        most = jmb_tasks_at_once(run);
        while (s->next_task < tasks && !spent) {
            run->first = s->next_task;
            count = tasks - run->first < most ? tasks - run->first : most;
            jmb_run_slice(run, (int)count);
            s->next_task += count;
            spent = jmb_spent(run);
        }
        if (s->next_task < tasks) break;
        s->next_op = jmb_phase_after(plan, &s->pass, s->next_op);
        s->next_task = 0;
    }
    return s->next_op == plan->count;
}

#if JMB_ATOMICS
/* Opens a phase to all threads: whoever finished the last task of the one before, and nobody else. */
static void jmb_gang_open(jmb_run *run, uint32_t op, uint32_t done)
{
    const jmb_plan *plan = &run->session->model->plan;
    uint32_t left = op < plan->count ? jmb_op_tasks(&plan->ops[op], &run->session->pass) - done : 0;
    run->working = left;
    JMB_ATOMIC_STORE(&run->ticket, (uint64_t)op << 32 | left);
}

/* Holding a task keeps its phase open, so all that it reads stands still. */
static void jmb_gang_run(jmb_run *run, uint32_t op, uint32_t left)
{
    const jamba_session *s = run->session;
    const jmb_plan *plan = &s->model->plan;
    jmb_fp_state saved = jmb_fp_enter();
    jmb_run_chain(s, &plan->ops[op], jmb_op_tasks(&plan->ops[op], &s->pass) - left);
    jmb_fp_leave(saved);
    if (jmb_spent(run)) JMB_ATOMIC_STORE(&run->stop, 1u);
    if (JMB_ATOMIC_DECREMENT(&run->working) == 0)
        jmb_gang_open(run, jmb_phase_after(plan, &run->session->pass, op), 0);
}

/* One thread's part of a whole pass. Any number of threads may come, at any time, and leave when it is
 * over: nobody waits for a thread, only for tasks that some thread has begun. */
static void jmb_gang_task(void *ctx, int index)
{
    jmb_run *run = (jmb_run *)ctx;
    uint32_t waits = 0;
    (void)index;
    while (!JMB_ATOMIC_LOAD(&run->stop)) {
        uint64_t ticket = JMB_ATOMIC_LOAD(&run->ticket);
        if (ticket >> 32 == run->session->model->plan.count) return;
        if ((uint32_t)ticket == 0) {
            jmb_relax(++waits);
        } else if (JMB_ATOMIC_SWAP(&run->ticket, &ticket, ticket - 1)) {
            waits = 0;
            jmb_gang_run(run, (uint32_t)(ticket >> 32), (uint32_t)ticket);
        }
    }
}

/* On threads that run at once: one call for the whole pass. */
static bool jmb_run_gang(jmb_run *run)
{
    jamba_session *s = run->session;
    const jmb_plan *plan = &s->model->plan;
    jmb_gang_open(run, s->next_op, s->next_task);
    s->executor.run(s->executor.user, s->executor.width, jmb_gang_task, run);
    s->next_op = (uint32_t)(run->ticket >> 32);
    s->next_task = 0;
    if (s->next_op == plan->count) return true;
    s->next_task = jmb_op_tasks(&plan->ops[s->next_op], &s->pass) - (uint32_t)run->ticket;
    run->handed = false; /* an executor that runs no task at all must not lose any */
    return run->budget_us ? false : jmb_run_slices(run);
}
#endif

/* Runs the pass on from where it stands; false when the budget was spent first. The clock is looked at
 * after each task. */
static bool jmb_pass_run(jamba_session *s, const jamba_session *timer, uint64_t start, uint64_t budget_us)
{
    jmb_run run;
    memset(&run, 0, sizeof run);
    run.session = s;
    run.timer = timer;
    run.start = start;
    run.budget_us = budget_us;
    run.handed = s->executor.run && s->executor.width > 1;
#if JMB_ATOMICS
    if (run.handed && s->executor.concurrent) return jmb_run_gang(&run);
#endif
    return jmb_run_slices(&run);
}

/* Runs the pass that holds a session on; JAMBA_OK when it is over, JAMBA_ERR_ABORTED when that and a callback asks to
 * stop. */
static jamba_result jmb_pass_work(
    jamba_session *lead, const jamba_session *timer, uint64_t start, uint64_t budget_us)
{
    jamba_result result = JAMBA_OK;
    jmb_pass_busy(lead, 1);
    if (!jmb_pass_run(lead, timer, start, budget_us)) result = JAMBA_PENDING;
    else if (!jmb_pass_end(lead)) result = JAMBA_ERR_ABORTED;
    jmb_pass_busy(lead, (uint32_t)-1);
    return result;
}

static jamba_session *jmb_first_holder(jamba_session *const *sessions, size_t count)
{
    size_t i;
    for (i = 0; i < count; i++)
        if (sessions[i]->holder) return sessions[i]->holder;
    return NULL;
}

/* Works off the queues of several sessions; passes that budgets have left half way come first. *go_on turns false when
 * a progress callback asks to stop, which is no failure when all is done. */
static jamba_result jmb_step(jamba_session *const *sessions, size_t count, uint64_t budget_us, bool *go_on)
{
    jamba_session *lead = sessions[0];
    uint64_t start = budget_us ? lead->now_us(lead->now_user) : 0;
    *go_on = true;
    for (;;) {
        jamba_session *holder = jmb_first_holder(sessions, count);
        jamba_result result;
        if (!jmb_queued(sessions, count)) return JAMBA_OK;
        if (!holder && !*go_on)
            return jmb_fail(&lead->error, JAMBA_ERR_ABORTED, 0, "stopped by the progress callback");
        if (!holder) jmb_pass_fill(lead, sessions, count, budget_us != 0);
        result = jmb_pass_work(holder ? holder : lead, lead, start, budget_us);
        if (result == JAMBA_PENDING) return result;
        *go_on = *go_on && result == JAMBA_OK;
    }
}

/* ---- adapters ------------------------------------------------------------------------------ */

static jamba_result jmb_check_given(
    jamba_session *s, jamba_adapter *const *adapters, const float *scales, size_t count)
{
    size_t i;
    if (count > JAMBA_ADAPTERS_MAX || (count && !adapters))
        return jmb_fail(&s->error, JAMBA_ERR_ARGUMENT, 0, "%z adapters: 0 to %d, and not NULL", count,
            (int)JAMBA_ADAPTERS_MAX);
    for (i = 0; i < count; i++) {
        if (!adapters[i]) return jmb_fail(&s->error, JAMBA_ERR_ARGUMENT, 0, "adapter %z is NULL", i);
        if (adapters[i]->model != s->model)
            return jmb_fail(&s->error, JAMBA_ERR_MISMATCH, 0, "adapter %z was loaded for another model", i);
        if (scales && !jmb_finite(scales[i]))
            return jmb_fail(&s->error, JAMBA_ERR_ARGUMENT, 0, "the scale of adapter %z is no finite number", i);
    }
    return JAMBA_OK;
}

/* Those whose scale is not 0. */
static jmb_adapters jmb_adapters_of(jamba_adapter *const *adapters, const float *scales, size_t count)
{
    jmb_adapters a;
    size_t i;
    memset(&a, 0, sizeof a);
    for (i = 0; i < count; i++) {
        if (scales && jmb_within(scales[i], 0, 0)) continue;
        a.loras[a.count] = adapters[i]->slots;
        a.scale[a.count] = scales ? scales[i] : 1;
        a.hash[a.count] = adapters[i]->header.hash;
        a.at[a.count + 1] = a.at[a.count] + (uint32_t)jmb_pad16(adapters[i]->rank);
        a.count++;
    }
    return a;
}

static void jmb_drop_adapters(jamba_session *s)
{
    if (s->own.adapters) s->allocator.free(s->allocator.user, s->own.adapters, s->own.adapters->size);
    s->own.adapters = NULL;
}

/* Matrices of adapters that a row can meet in one operation. */
static uint32_t jmb_lora_slots(const jamba_session *s)
{
    uint32_t top_k = s->model->plan.top_k, parts = 2u * JMB_MAX_PARTS;
    return top_k > parts ? top_k : parts;
}

/* What they take, with room for the session's own rows. */
static uint64_t jmb_adapters_bytes(const jamba_session *s, const jmb_adapters *a)
{
    uint64_t floats = jmb_mul((uint64_t)s->chunk * jmb_lora_slots(s), a->at[a->count]);
    return jmb_add(jmb_round_up(sizeof *a, JMB_ALIGN), jmb_mul(floats, sizeof(float)));
}

/* Puts them in place of those there are. */
static jamba_result jmb_set_adapters(jamba_session *s, const jmb_adapters *given, jamba_error *error)
{
    uint64_t size = jmb_adapters_bytes(s, given);
    jmb_adapters *a = NULL;
    if (given->count && size <= SIZE_MAX / 2)
        a = (jmb_adapters *)s->allocator.alloc(s->allocator.user, (size_t)size, JMB_ALIGN);
    if (given->count && !a)
        return jmb_fail(error, JAMBA_ERR_MEMORY, 0, "no memory for adapters (%l bytes)", size);
    jmb_drop_adapters(s);
    if (!a) return JAMBA_OK;
    *a = *given;
    a->size = (size_t)size;
    a->slots = jmb_lora_slots(s);
    a->low = (float *)(void *)((uint8_t *)a + jmb_round_up(sizeof *a, JMB_ALIGN));
    s->own.adapters = a;
    return JAMBA_OK;
}

/* ---- fork ---------------------------------------------------------------------------------- */

/* Fills everything but the places, and measures. */
static jamba_result jmb_fork_prepare(
    jamba_session *s, const jamba_session *source, int32_t tokens, jamba_error *error)
{
    if (source->busy || jmb_span_in(source))
        return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "the source of a fork stands in the middle of a token: step on");
    if (tokens < 0 || (uint32_t)tokens > JMB_MAX_CONTEXT - source->fed)
        return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "%d more tokens make a context outside 1 to %d", tokens,
            (int)JMB_MAX_CONTEXT);
    *s = *source;
    s->context = tokens ? source->fed + (uint32_t)tokens : source->context;
    s->chunk = source->fork_chunk < s->context ? source->fork_chunk : s->context;
    s->mark_room = source->fork_marks;
    s->mark_count = s->held = 0;
    s->holder = NULL;
    s->pass.rows = s->pass.span_count = 0;
    memset(&s->error, 0, sizeof s->error);
    s->own.adapters = NULL;
    return jmb_session_measure(s, jmb_pages_of(s->context) - s->own.kept / JMB_PAGE, error);
}

/* Copies what the timeline has come to. */
static void jmb_fork_copy(jamba_session *s, const jamba_session *source)
{
    size_t vocab = jmb_pad16(s->model->metadata.header.vocab);
    memcpy(s->tokens, source->tokens, s->fed * sizeof *s->tokens);
    memcpy(s->turns, source->turns, (size_t)s->fed + 1);
    memset(s->turns + s->fed + 1, 0, s->context - s->fed);
    memcpy(s->reply.text, source->reply.text, s->reply.size);
    memcpy(s->own.state, source->own.state, (size_t)s->model->plan.state_floats * sizeof(float));
    if (source->logit_rows) {
        memcpy(s->logits, source->logits + (source->logit_rows - 1) * vocab, vocab * sizeof(float));
        s->logit_rows = 1;
    }
    jmb_pages_fork(s, source);
}

/* ===========================================================================================
 * >>state - a session's content as bytes, and back
 *
 * One walk over the content measures, writes and reads it, so that the three agree. What the bytes say
 * is checked before the walk reads them; from there on nothing can fail.
 * =========================================================================================== */

enum { JMB_SAVED_VERSION = 1, JMB_SAVED_USED = 260, JMB_SAVED_BYTES = 320 }; /* of the header; zero from USED on */
enum { JMB_SAVED_ADAPTERS = 128 }; /* where they begin: u64 hash, f32 scale and a zero of each; hash 0: no more */
enum { JMB_SAVED_LOGITS = 1, JMB_SAVED_SAMPLER = 2 }; /* jmb_saved.flags */

static const uint8_t jmb_saved_magic[8] = { 0x89, 'J', 'M', 'S', '\r', '\n', 0x1a, '\n' };

/* type, name, byte offset in the header. Bytes not listed are zero. */
#define JMB_SAVED_FIELDS(X)                                                           \
    X(u32, version, 8) X(u32, flags, 12)                                              \
    X(u64, size, 16)               /* of all */                                       \
    X(u64, hash, 24)                                                                  \
    /* 32..63: identity of the model */                                               \
    X(u32, position, 64) X(u32, pending, 68)                                          \
    X(u32, unknown, 72)            /* tokens in front that are left out */            \
    X(u32, marks, 76)                                                                 \
    X(u32, state, 80)              /* jamba_form */                                   \
    X(u32, kv, 84)                 /* jamba_kv_type */                                \
    X(u32, text, 88)               /* bytes of a reply not given yet, and 1; 0: none */\
    X(u32, turns, 92)              /* places where something begins or ends */        \
    X(u32, adapted, 256)           /* tokens before the adapters were set */          \
    X(f32, temperature, 96) X(u32, top_k, 100) X(f32, top_p, 104) X(f32, min_p, 108)  \
    X(f32, repeat_penalty, 112) X(u32, repeat_window, 116) X(u64, seed, 120)

#define JMB_WRITE_u32(p, value) jmb_store_u32(p, value)
#define JMB_WRITE_u64(p, value) jmb_store_u64(p, value)
#define JMB_WRITE_f32(p, value) jmb_store_f32(p, value)

typedef struct jmb_saved {
#define JMB_X(type, name, at) jmb_##type name;
    JMB_SAVED_FIELDS(JMB_X)
#undef JMB_X
    uint8_t identity[32];
    uint64_t adapter_hash[JAMBA_ADAPTERS_MAX];
    float adapter_scale[JAMBA_ADAPTERS_MAX];
} jmb_saved;

/* ---- numbers ------------------------------------------------------------------------------- */

/* The type of saved numbers whose session's are of type `own`. */
static jamba_kv_type jmb_form_type(jamba_form form, jamba_kv_type own)
{
    jamba_kv_type type = form == JAMBA_Q8 ? JAMBA_KV_Q8 : JAMBA_KV_F16;
    return form == JAMBA_EXACT || jmb_kv_bytes(type) > jmb_kv_bytes(own) ? own : type;
}

/* x[i] = number i of n, `step` numbers after the one before. Bytes of any alignment; `scale` of q8. */
static void jmb_get_numbers(
    jamba_kv_type type, const uint8_t *at, size_t step, const uint8_t *scale, size_t n, float *x)
{
    float unit = type == JAMBA_KV_Q8 ? jmb_load_f32(scale) : 1.0f;
    size_t i;
    switch (type) {
    case JAMBA_KV_F32:
        for (i = 0; i < n; i++) x[i] = jmb_load_f32(at + i * step * 4);
        break;
    case JAMBA_KV_Q8:
        for (i = 0; i < n; i++) x[i] = (float)(int8_t)at[i * step] * unit;
        break;
    default:
        for (i = 0; i < n; i++) x[i] = jmb_f16_to_float(jmb_load_u16(at + i * step * 2));
        break;
    }
}

/* The reverse, rounded as the KV cache is. False when a finite number has become infinite. */
static bool jmb_put_numbers(const jmb_kernels *kernels, jamba_kv_type type, const float *x, size_t n, uint8_t *at,
    size_t step, uint8_t *scale)
{
    int8_t codes[JMB_MAX_HEAD_DIM];
    uint32_t lost = 0;
    size_t i;
    switch (type) {
    case JAMBA_KV_F32:
        for (i = 0; i < n; i++) jmb_store_f32(at + i * step * 4, x[i]);
        break;
    case JAMBA_KV_Q8:
        jmb_store_f32(scale, kernels->code(x, n, codes));
        for (i = 0; i < n; i++) at[i * step] = (uint8_t)codes[i];
        break;
    default:
        for (i = 0; i < n; i++) {
            uint32_t half = jmb_float_to_f16(x[i]);
            lost |= (uint32_t)((half & 0x7fffu) == 0x7c00u && jmb_finite(x[i]));
            jmb_store_u16(at + i * step * 2, half);
        }
        break;
    }
    return lost == 0;
}

/* ---- the walk ------------------------------------------------------------------------------ */

typedef struct jmb_walk {
    jamba_session *session;
    const jmb_saved *saved;
    uint8_t *data; /* the bytes, NULL: only measures */
    uint64_t at;   /* in them */
    bool reads;    /* from the bytes into the session, else the other way */
    bool lost;     /* a number was too large for its type */
} jmb_walk;

/* The next `size` bytes, NULL while measuring. */
static uint8_t *jmb_walk_next(jmb_walk *w, uint64_t size)
{
    uint8_t *next = w->data ? w->data + (size_t)w->at : NULL;
    w->at = jmb_add(w->at, size);
    return next;
}

static void jmb_walk_u32(jmb_walk *w, int32_t *numbers, uint64_t count)
{
    uint8_t *next = jmb_walk_next(w, count * 4);
    uint64_t i;
    for (i = 0; next && i < count; i++, next += 4) {
        if (w->reads) numbers[i] = (int32_t)jmb_load_u32(next);
        else jmb_store_u32(next, (uint32_t)numbers[i]);
    }
}

static void jmb_walk_bytes(jmb_walk *w, void *memory, uint64_t size)
{
    uint8_t *next = jmb_walk_next(w, size);
    if (!next || size == 0) return;
    if (w->reads) memcpy(memory, next, (size_t)size);
    else memcpy(next, memory, (size_t)size);
}

/* `count` numbers as `type`, those of q8 in blocks of 16. x NULL: passes over them. */
static void jmb_walk_numbers(jmb_walk *w, jamba_kv_type type, float *x, uint64_t count)
{
    size_t bytes = jmb_kv_bytes(type), scale = type == JAMBA_KV_Q8 ? 4 : 0, n;
    uint8_t *next = jmb_walk_next(w, jmb_add(jmb_mul(count, bytes), jmb_mul((count + 15) / 16, scale)));
    if (!next || !x) return;
    for (; count > 0; count -= n, x += n, next += n * bytes + scale) {
        n = count < 16 ? (size_t)count : 16;
        if (w->reads) jmb_get_numbers(type, next, 1, next + n * bytes, n, x);
        else if (!jmb_put_numbers(w->session->model->kernels, type, x, n, next, 1, next + n * bytes)) w->lost = true;
    }
}

/* Sixteen keys and values of one KV head, bytes of any alignment: K [dim][16], V [16][stride], scales of each. */
typedef struct jmb_kv_tile {
    jamba_kv_type type;
    size_t dim, stride;
    uint8_t *k, *v, *k_scale, *v_scale;
} jmb_kv_tile;

/* A tile's parts one behind the other, and its bytes in all. */
static size_t jmb_tile_at(jmb_kv_tile *t, const jmb_block *b, jamba_kv_type type, uint8_t *at)
{
    size_t bytes = jmb_kv_bytes(type), k_size, v_size;
    t->type = type;
    t->dim = b->head_dim;
    t->stride = jmb_pad16(t->dim);
    k_size = t->dim * 16 * bytes;
    v_size = t->stride * 16 * bytes;
    if (at) {
        t->k = at;
        t->v = t->k + k_size;
        t->k_scale = t->v + v_size;
        t->v_scale = t->k_scale + 64;
    }
    return k_size + v_size + (type == JAMBA_KV_Q8 ? 128 : 0);
}

/* Where the session holds the keys from `key` on. */
static jmb_kv_tile jmb_tile_of(const jamba_session *s, const jmb_op *op, size_t key, size_t head)
{
    jmb_kv_head h = jmb_kv_head_of(&s->pass, op, &s->own, key / JMB_PAGE, head);
    size_t bytes = jmb_kv_bytes(h.type), first = key % JMB_PAGE;
    jmb_kv_tile t;
    t.type = h.type;
    t.dim = h.dim;
    t.stride = h.stride;
    t.k = h.k + first * h.dim * bytes;
    t.v = h.v + first * h.stride * bytes;
    t.k_scale = h.k_scale + first * 4;
    t.v_scale = h.v_scale + first * 4;
    return t;
}

static void jmb_copy_tile(const jmb_kv_tile *to, const jmb_kv_tile *from)
{
    size_t bytes = jmb_kv_bytes(to->type);
    memcpy(to->k, from->k, to->dim * 16 * bytes);
    memcpy(to->v, from->v, to->stride * 16 * bytes);
    if (to->type != JAMBA_KV_Q8) return;
    memcpy(to->k_scale, from->k_scale, 64);
    memcpy(to->v_scale, from->v_scale, 64);
}

/* The first `count` keys and values into another type. False when a number was too large for it. */
static bool jmb_convert_tile(
    const jmb_kernels *kernels, const jmb_kv_tile *to, const jmb_kv_tile *from, size_t count)
{
    size_t out = jmb_kv_bytes(to->type), in = jmb_kv_bytes(from->type), i, at;
    float x[JMB_MAX_HEAD_DIM];
    bool held = true;
    for (i = to->dim; i < to->stride; i++) x[i] = 0;
    for (i = 0; i < count; i++) {
        jmb_get_numbers(from->type, from->k + i * in, 16, from->k_scale + i * 4, to->dim, x);
        held = jmb_put_numbers(kernels, to->type, x, to->dim, to->k + i * out, 16, to->k_scale + i * 4) && held;
        at = i * to->stride;
        jmb_get_numbers(from->type, from->v + at * in, 1, from->v_scale + i * 4, to->dim, x);
        held = jmb_put_numbers(kernels, to->type, x, to->stride, to->v + at * out, 1, to->v_scale + i * 4) && held;
    }
    return held;
}

/* Zeros for the keys and values from `first` on, which nobody has written. */
static void jmb_clear_tile(const jmb_kv_tile *t, size_t first)
{
    size_t bytes = jmb_kv_bytes(t->type), left = 16 - first, i;
    for (i = 0; i < t->dim; i++) memset(t->k + (i * 16 + first) * bytes, 0, left * bytes);
    memset(t->v + first * t->stride * bytes, 0, left * t->stride * bytes);
    if (t->type != JAMBA_KV_Q8) return;
    memset(t->k_scale + first * 4, 0, left * 4);
    memset(t->v_scale + first * 4, 0, left * 4);
}

static void jmb_walk_tile(jmb_walk *w, const jmb_kv_tile *own, const jmb_kv_tile *saved, size_t count)
{
    const jmb_kv_tile *to = w->reads ? own : saved, *from = w->reads ? saved : own;
    if (to->type == from->type) jmb_copy_tile(to, from);
    else if (!jmb_convert_tile(w->session->model->kernels, to, from, count)) w->lost = true;
    if (!w->reads) jmb_clear_tile(to, count);
}

/* Keys and values of one attention block. */
static void jmb_walk_cache(jmb_walk *w, const jmb_op *op)
{
    uint32_t position = w->saved->position, tiles = (position + 15) / 16, i, head;
    jmb_kv_tile own, saved;
    uint64_t size = jmb_tile_at(&saved, op->block, (jamba_kv_type)w->saved->kv, NULL);
    if (!w->data) {
        jmb_walk_next(w, jmb_mul(jmb_mul(tiles, op->block->kv_heads), size));
        return;
    }
    for (i = 0; i < tiles; i++) {
        size_t key = (size_t)i * 16, count = position - key < 16 ? position - key : 16;
        for (head = 0; head < op->block->kv_heads; head++) {
            own = jmb_tile_of(w->session, op, key, head);
            jmb_tile_at(&saved, op->block, saved.type, jmb_walk_next(w, size));
            jmb_walk_tile(w, &own, &saved, count);
        }
    }
}

static void jmb_walk_logits(jmb_walk *w, float *logits)
{
    jamba_kv_type type = w->saved->state == JAMBA_EXACT ? JAMBA_KV_F32 : JAMBA_KV_F16;
    jmb_walk_numbers(w, type, logits, w->session->model->metadata.header.vocab);
}

/* `depth` rows of 16 lanes for each 16 of `width` channels. Lanes beyond the width hold anything; saved ones are zero,
 * or they would spoil the scale of the others. state NULL: passes over them. */
static void jmb_walk_channels(jmb_walk *w, float *state, size_t width, size_t depth)
{
    jamba_kv_type type = jmb_form_type((jamba_form)w->saved->state, JAMBA_KV_F32);
    size_t lanes = width % 16, whole = (width - lanes) * depth, i;
    jmb_walk_numbers(w, type, state, whole);
    for (i = 0; lanes && i < depth; i++) {
        float row[16] = { 0 };
        if (state && !w->reads) memcpy(row, state + whole + i * 16, lanes * sizeof *row);
        jmb_walk_numbers(w, type, row, 16);
        if (state && w->reads) memcpy(state + whole + i * 16, row, sizeof row);
    }
}

/* The state of one operation, if it has any. */
static void jmb_walk_op(jmb_walk *w, const jmb_op *op, float *state)
{
    const jmb_block *b = op->block;
    size_t i, width, at = (size_t)op->conv_at;
    switch (op->kind) {
    case JMB_OP_CONV:
        for (i = 0; i < op->parts; at += op->out[i++].stride * (b->d_conv - 1))
            jmb_walk_channels(w, state ? state + at : NULL, op->out[i].width, b->d_conv - 1);
        break;
    case JMB_OP_SCAN:
        jmb_walk_channels(w, state ? state + op->state_at : NULL, op->out[0].width, b->d_state);
        break;
    case JMB_OP_SCAN2:
        width = b->d_inner / b->heads;
        for (i = 0, at = (size_t)op->state_at; i < b->heads; i++, at += jmb_pad16(width) * b->d_state)
            jmb_walk_channels(w, state ? state + at : NULL, width, b->d_state);
        break;
    default: break;
    }
}

static void jmb_walk_state(jmb_walk *w, float *state)
{
    const jmb_plan *plan = &w->session->model->plan;
    uint32_t i;
    for (i = 0; i < plan->count; i++) jmb_walk_op(w, &plan->ops[i], state);
}

/* Marks are put in order as the session came by them, so that those go for which there is no room. */
static void jmb_walk_snapshots(jmb_walk *w, const uint8_t *positions)
{
    jamba_session *s = w->session;
    jmb_mark nowhere;
    uint64_t at = w->at;
    uint32_t i;
    memset(&nowhere, 0, sizeof nowhere);
    if (!w->data && w->saved->marks) { /* one for all */
        jmb_walk_logits(w, NULL);
        jmb_walk_state(w, NULL);
        w->at = jmb_add(at, jmb_mul(w->at - at, w->saved->marks));
        return;
    }
    for (i = 0; i < w->saved->marks; i++) {
        const jmb_mark *m = &nowhere;
        if (!w->reads) m = &s->marks[i];
        else if (s->mark_room) {
            uint32_t position = jmb_load_u32(positions + (size_t)i * 4);
            s->position = position < w->saved->position ? position : w->saved->position;
            m = jmb_new_mark(s);
        }
        jmb_walk_logits(w, m->logits);
        jmb_walk_state(w, m->state);
    }
}

/* Positions of the marks; returns where they lie. */
static const uint8_t *jmb_walk_marks(jmb_walk *w)
{
    uint8_t *at = jmb_walk_next(w, jmb_mul(w->saved->marks, 4));
    uint32_t i;
    for (i = 0; at && !w->reads && i < w->saved->marks; i++)
        jmb_store_u32(at + (size_t)i * 4, w->session->marks[i].position);
    return at;
}

/* Each place where a turn begins or ends, and how. */
static void jmb_walk_turns(jmb_walk *w)
{
    uint8_t *at = jmb_walk_next(w, jmb_mul(w->saved->turns, 8)), *turns = w->session->turns;
    uint32_t place = 0, i;
    for (i = 0; at && i < w->saved->turns; i++, place++, at += 8) {
        if (w->reads) {
            uint32_t to = jmb_load_u32(at);
            if (to <= w->session->context) turns[to] = (uint8_t)jmb_load_u32(at + 4);
            continue;
        }
        while (!turns[place]) place++;
        jmb_store_u32(at, place);
        jmb_store_u32(at + 4, turns[place]);
    }
}

/* The stream and the text of a reply that is being written. */
static void jmb_walk_reply(jmb_walk *w)
{
    jmb_reply *r = &w->session->reply;
    uint32_t size = w->saved->text ? w->saved->text - 1 : 0;
    if (!w->saved->text) return;
    jmb_walk_u32(w, &r->stream.held_count, 1);
    jmb_walk_u32(w, &r->stream.started, 1);
    jmb_walk_bytes(w, r->stream.held, 4);
    jmb_walk_bytes(w, r->text + (w->reads ? 0 : r->given), size);
}

static uint32_t jmb_saved_tokens(const jmb_saved *h)
{
    return h->position - h->unknown + h->pending;
}

/* Everything behind the header but the zeros at the end; returns the size with those. */
static uint64_t jmb_walk_all(jmb_walk *w)
{
    jamba_session *s = w->session;
    const jmb_plan *plan = &s->model->plan;
    const uint8_t *positions;
    uint32_t i;
    w->at = JMB_SAVED_BYTES;
    jmb_walk_u32(w, s->tokens + w->saved->unknown, jmb_saved_tokens(w->saved));
    positions = jmb_walk_marks(w);
    jmb_walk_turns(w);
    jmb_walk_reply(w);
    if (w->saved->flags & JMB_SAVED_LOGITS) {
        size_t row = w->reads || !s->logit_rows ? 0 : s->logit_rows - 1;
        jmb_walk_logits(w, s->logits + row * jmb_pad16(s->model->metadata.header.vocab));
    }
    jmb_walk_state(w, s->own.state);
    for (i = 0; i < plan->count; i++)
        if (plan->ops[i].kind == JMB_OP_CACHE) jmb_walk_cache(w, &plan->ops[i]);
    jmb_walk_snapshots(w, positions);
    return jmb_round_up(w->at, 8);
}

static jmb_walk jmb_walk_of(const jamba_session *s, const jmb_saved *h, const uint8_t *data, bool reads)
{
    jmb_walk w;
    memset(&w, 0, sizeof w);
    w.session = (jamba_session *)(uintptr_t)s; /* stays as it is unless the walk reads */
    w.saved = h;
    w.data = (uint8_t *)(uintptr_t)data;
    w.reads = reads;
    return w;
}

static uint64_t jmb_saved_size(const jamba_session *s, const jmb_saved *h)
{
    jmb_walk w = jmb_walk_of(s, h, NULL, false);
    return jmb_walk_all(&w);
}

/* ---- writing ------------------------------------------------------------------------------- */

static uint64_t jmb_saved_hash(const uint8_t *p, uint64_t size)
{
    return jmb_hash64_by_four(jmb_hash64(JMB_HASH_SEED, p, 24), p + 32, (size_t)size - 32);
}

static void jmb_saved_sampler(jmb_saved *h, const jamba_sampler *sampler)
{
    h->flags |= JMB_SAVED_SAMPLER;
    h->temperature = sampler->temperature;
    h->top_k = (uint32_t)sampler->top_k;
    h->top_p = sampler->top_p;
    h->min_p = sampler->min_p;
    h->repeat_penalty = sampler->repeat_penalty;
    h->repeat_window = (uint32_t)sampler->repeat_window;
    h->seed = sampler->seed;
}

static jamba_sampler jmb_sampler_of(const jmb_saved *h)
{
    jamba_sampler sampler;
    memset(&sampler, 0, sizeof sampler);
    sampler.temperature = h->temperature;
    sampler.top_k = (int32_t)h->top_k;
    sampler.top_p = h->top_p;
    sampler.min_p = h->min_p;
    sampler.repeat_penalty = h->repeat_penalty;
    sampler.repeat_window = (int32_t)h->repeat_window;
    sampler.seed = h->seed;
    return sampler;
}

/* The conversation, which goes with its tokens. */
static void jmb_saved_talk(jmb_saved *h, const jamba_session *s)
{
    uint32_t i;
    for (i = 0; i <= s->fed; i++) h->turns += s->turns[i] != 0;
    if (s->fed && s->reply.at == s->fed) h->text = 1 + s->reply.size - s->reply.given;
}

static jmb_saved jmb_saved_of(const jamba_session *s, const jamba_save_params *params)
{
    const jmb_adapters *a = s->own.adapters;
    jmb_saved h;
    uint32_t i;
    memset(&h, 0, sizeof h);
    h.version = JMB_SAVED_VERSION;
    memcpy(h.identity, s->model->metadata.header.identity, 32);
    h.position = s->position;
    h.pending = s->fed - s->position;
    while (h.unknown < h.position && (params->no_tokens || s->tokens[h.unknown] < 0)) h.unknown++;
    h.marks = params->marks ? s->mark_count : 0;
    h.state = (uint32_t)params->state;
    h.kv = (uint32_t)jmb_form_type(params->kv, s->own.kv_type);
    if (s->logit_rows && !params->no_logits) h.flags |= JMB_SAVED_LOGITS;
    if (params->sampler) jmb_saved_sampler(&h, params->sampler);
    h.adapted = s->adapted;
    for (i = 0; a && i < a->count; i++) {
        h.adapter_hash[i] = a->hash[i];
        h.adapter_scale[i] = a->scale[i];
    }
    if (!params->no_tokens) jmb_saved_talk(&h, s);
    h.size = jmb_saved_size(s, &h);
    return h;
}

static void jmb_write_saved(jmb_saved *h, uint8_t *p)
{
    size_t i;
    memset(p, 0, JMB_SAVED_BYTES);
    memcpy(p, jmb_saved_magic, 8);
    memcpy(p + 32, h->identity, 32);
#define JMB_X(type, name, at) JMB_WRITE_##type(p + (at), h->name);
    JMB_SAVED_FIELDS(JMB_X)
#undef JMB_X
    for (i = 0; i < JAMBA_ADAPTERS_MAX; i++) {
        jmb_store_u64(p + JMB_SAVED_ADAPTERS + i * 16, h->adapter_hash[i]);
        jmb_store_f32(p + JMB_SAVED_ADAPTERS + i * 16 + 8, h->adapter_scale[i]);
    }
    h->hash = jmb_saved_hash(p, h->size);
    jmb_store_u64(p + 24, h->hash);
}

/* False when a number does not fit the form. */
static bool jmb_save(const jamba_session *s, jmb_saved *h, uint8_t *p)
{
    jmb_walk w = jmb_walk_of(s, h, p, false);
    jmb_fp_state saved = jmb_fp_enter();
    jmb_walk_all(&w);
    jmb_fp_leave(saved);
    memset(p + (size_t)w.at, 0, (size_t)(h->size - w.at));
    jmb_write_saved(h, p);
    return !w.lost;
}

/* ---- reading ------------------------------------------------------------------------------- */

static jamba_result jmb_check_saved(const jmb_saved *h, jamba_error *error)
{
    if (h->flags & ~(uint32_t)(JMB_SAVED_LOGITS | JMB_SAVED_SAMPLER))
        return jmb_fail(error, JAMBA_ERR_FORMAT, 12, "the saved state has unknown flags %u", h->flags);
    if (h->state > JAMBA_Q8 || h->kv > JAMBA_KV_Q8)
        return jmb_fail(error, JAMBA_ERR_FORMAT, 80, "the saved state has numbers of unknown form");
    if (h->unknown > h->position || h->position > JMB_MAX_CONTEXT || h->pending > JMB_MAX_CONTEXT - h->position)
        return jmb_fail(error, JAMBA_ERR_FORMAT, 64, "the saved state has %u and %u tokens, %u of them unknown",
            h->position, h->pending, h->unknown);
    if (h->marks > h->position || h->marks > JMB_MAX_MARKS)
        return jmb_fail(error, JAMBA_ERR_FORMAT, 76, "the saved state has too many marks: %u", h->marks);
    if (h->text > JAMBA_STOP_MAX || h->turns > h->position + h->pending + 1)
        return jmb_fail(error, JAMBA_ERR_FORMAT, 88, "the saved state has a reply or turns that are too long");
    return JAMBA_OK;
}

/* The header alone, from a state that has `size` bytes, or of a file that has. */
static jamba_result jmb_read_saved(jmb_saved *h, const uint8_t *p, uint64_t size, jamba_error *error)
{
    size_t i;
    memset(h, 0, sizeof *h);
    if (size >= 8 && memcmp(p, jmb_saved_magic, 8) != 0)
        return jmb_fail(error, JAMBA_ERR_FORMAT, 0, "not a saved state");
    if (size < JMB_SAVED_BYTES)
        return jmb_fail(error, JAMBA_ERR_FORMAT, size, "too short for a saved state (%l bytes)", size);
    memcpy(h->identity, p + 32, 32);
#define JMB_X(type, name, at) h->name = JMB_READ_##type(p + (at));
    JMB_SAVED_FIELDS(JMB_X)
#undef JMB_X
    for (i = 0; i < JAMBA_ADAPTERS_MAX; i++) {
        h->adapter_hash[i] = jmb_load_u64(p + JMB_SAVED_ADAPTERS + i * 16);
        h->adapter_scale[i] = jmb_load_f32(p + JMB_SAVED_ADAPTERS + i * 16 + 8);
    }
    if (h->version != JMB_SAVED_VERSION)
        return jmb_fail(error, JAMBA_ERR_UNSUPPORTED, 8,
            "the state was saved in format %u, this jamba.h reads format %u: make it anew", h->version,
            (unsigned)JMB_SAVED_VERSION);
    if (h->size != size || size % 8)
        return jmb_fail(error, JAMBA_ERR_FORMAT, 16, "the saved state has %l bytes and should have %l: copy it again",
            size, h->size);
    for (i = JMB_SAVED_ADAPTERS; i < JMB_SAVED_ADAPTERS + 16 * JAMBA_ADAPTERS_MAX; i += 16)
        JMB_TRY(jmb_check_zero(p, i + 12, i + 16, error));
    JMB_TRY(jmb_check_zero(p, JMB_SAVED_USED, JMB_SAVED_BYTES, error));
    return jmb_check_saved(h, error);
}

static jamba_result jmb_check_saved_hash(const jmb_saved *h, const uint8_t *p, jamba_error *error)
{
    if (jmb_saved_hash(p, h->size) != h->hash)
        return jmb_fail(error, JAMBA_ERR_FORMAT, 24, "the saved state is damaged (its hash differs): copy it again");
    return JAMBA_OK;
}

/* Whether the session's adapters are those that the state was saved with. */
static bool jmb_same_adapters(const jamba_session *s, const jmb_saved *h)
{
    const jmb_adapters *a = s->own.adapters;
    uint32_t count = a ? a->count : 0, i;
    for (i = 0; i < JAMBA_ADAPTERS_MAX; i++)
        if (h->adapter_hash[i] != (i < count ? a->hash[i] : 0)
            || (i < count && jmb_bits_of(h->adapter_scale[i]) != jmb_bits_of(a->scale[i])))
            return false;
    return true;
}

/* Whether the session can take a state with this header. */
static jamba_result jmb_saved_fits(jamba_session *s, const jmb_saved *h)
{
    uint64_t size;
    if (memcmp(h->identity, s->model->metadata.header.identity, 32) != 0)
        return jmb_fail(&s->error, JAMBA_ERR_MISMATCH, 32,
            "the state was saved with another model or other weights: load that model, or make the state anew");
    if (!jmb_same_adapters(s, h))
        return jmb_fail(&s->error, JAMBA_ERR_MISMATCH, JMB_SAVED_ADAPTERS,
            "the state was saved with other LoRA adapters or scales than the session has: set those first");
    size = jmb_saved_size(s, h);
    if (size != h->size)
        return jmb_fail(&s->error, JAMBA_ERR_FORMAT, 16, "the saved state has %l bytes, its content needs %l", h->size,
            size);
    if (h->position + h->pending > s->context)
        return jmb_fail(&s->error, JAMBA_ERR_CONTEXT, 64,
            "the saved state has %u tokens, the session's context only %u: make it larger", h->position + h->pending,
            s->context);
    if (!jmb_pages_fit(s, 0, h->position + h->pending))
        return jmb_fail(&s->error, JAMBA_ERR_CONTEXT, 64,
            "no room for the %u tokens of the saved state: forks hold pages of this session", h->position + h->pending);
    return JAMBA_OK;
}

static jamba_result jmb_check_saved_turns(const jamba_session *s, const jmb_saved *h, const uint8_t *p, uint64_t at,
    jamba_error *error)
{
    uint32_t fed = h->position + h->pending, i;
    for (i = 0; i < h->turns; i++, at += 8) {
        uint32_t place = jmb_load_u32(p + at), bits = jmb_load_u32(p + at + 4);
        bool behind = i == 0 || place > jmb_load_u32(p + at - 8);
        if (place < h->unknown || place > fed || !behind || bits == 0 || bits >= 2 * JMB_TURN_PROPER)
            return jmb_fail(error, JAMBA_ERR_FORMAT, at, "turn %u of the saved state is out of order", i);
    }
    if (!h->text) return JAMBA_OK;
    if (jmb_load_u32(p + at) > 3 || jmb_load_u32(p + at + 4) > s->model->tokenizer.strip + 1
        || jmb_utf8_prefix(p + at + 12, h->text - 1) < h->text - 1)
        return jmb_fail(error, JAMBA_ERR_FORMAT, at, "the reply of the saved state is no text");
    return JAMBA_OK;
}

static jamba_result jmb_check_saved_content(const jamba_session *s, const jmb_saved *h, const uint8_t *p,
    jamba_error *error)
{
    jmb_walk w = jmb_walk_of(s, h, NULL, false);
    uint32_t vocab = s->model->metadata.header.vocab, last = 0, i;
    uint64_t at = JMB_SAVED_BYTES;
    for (i = 0; i < jmb_saved_tokens(h); i++, at += 4)
        if (jmb_load_u32(p + at) >= vocab)
            return jmb_fail(error, JAMBA_ERR_FORMAT, at, "a token of the saved state is outside the vocabulary");
    for (i = 0; i < h->marks; i++, at += 4) {
        uint32_t position = jmb_load_u32(p + at);
        if (position <= last || position > h->position)
            return jmb_fail(error, JAMBA_ERR_FORMAT, at, "mark %u of the saved state is out of order", i);
        last = position;
    }
    JMB_TRY(jmb_check_saved_turns(s, h, p, at, error));
    jmb_walk_all(&w);
    return jmb_check_zero(p, w.at, h->size, error);
}

/* Drops what the session holds, and takes pages for `tokens`. */
static void jmb_make_room(jamba_session *s, uint32_t tokens)
{
    jmb_leave_pass(s);
    s->mark_count = s->logit_rows = 0;
    jmb_drop_fed(s, 0);
    jmb_pages_grow(s, tokens);
    s->fed = tokens;
}

/* Tokens and counts that lead elsewhere, once they are the session's own. */
static void jmb_bound_taken(jamba_session *s, const jmb_saved *h)
{
    uint32_t vocab = s->model->metadata.header.vocab, i;
    for (i = h->unknown; i < s->fed; i++)
        if ((uint32_t)s->tokens[i] >= vocab) s->tokens[i] = 0;
    if (s->reply.stream.held_count < 0 || s->reply.stream.held_count > 3) s->reply.stream.held_count = 0;
}

/* Everything is checked. A mapped file may be written to meanwhile: that may change what the session says, and must
 * not lead out of its memory, so that what is an index is bounded here, or in the walk, once more. */
static void jmb_take_saved(jamba_session *s, const jmb_saved *h, const uint8_t *p)
{
    jmb_walk w = jmb_walk_of(s, h, p, true);
    jmb_fp_state saved;
    uint32_t i;
    jmb_make_room(s, h->position + h->pending);
    for (i = 0; i < h->unknown; i++) s->tokens[i] = -1;
    memset(s->turns, 0, (size_t)s->context + 1);
    saved = jmb_fp_enter();
    jmb_walk_all(&w);
    jmb_fp_leave(saved);
    jmb_bound_taken(s, h);
    s->position = s->own.kept = h->position;
    s->adapted = h->adapted;
    if (h->flags & JMB_SAVED_LOGITS) s->logit_rows = 1;
    s->reply.at = h->text ? s->fed : 0;
    s->reply.size = h->text ? h->text - 1 : 0;
    s->reply.given = 0;
}

static jamba_result jmb_restore(jamba_session *s, const uint8_t *p, uint64_t size)
{
    jmb_saved h;
    JMB_TRY(jmb_read_saved(&h, p, size, &s->error));
    JMB_TRY_HASH(jmb_check_saved_hash(&h, p, &s->error));
    JMB_TRY(jmb_saved_fits(s, &h));
    JMB_TRY(jmb_check_saved_content(s, &h, p, &s->error));
    jmb_take_saved(s, &h, p);
    return JAMBA_OK;
}

static jamba_result jmb_saved_head(void *user, const uint8_t *head, uint64_t size, jamba_error *error)
{
    jmb_saved h;
    (void)user;
    return jmb_read_saved(&h, head, size, error);
}

static jamba_result jmb_restore_source(jamba_session *s, const jamba_source *source)
{
    jmb_bytes bytes;
    jamba_result result = jmb_bytes_open(&bytes, &s->allocator, source, jmb_saved_head, NULL, &s->error);
    if (result == JAMBA_OK) result = jmb_restore(s, bytes.data, bytes.size);
    jmb_bytes_close(&bytes);
    return result;
}

/* ===========================================================================================
 * >>sampler - from logits to a token
 *
 * Works on a copy of the logits. Candidates rank by falling probability, equal ones by token number;
 * top_k, top_p and a draw each cut this ranking somewhere. It is never sorted: where it is cut is found
 * digit by digit of the probabilities' bits, from the count and mass of all candidates with a digit.
 * Mass is whole numbers, whose sums are the same in any order.
 * =========================================================================================== */

static bool jmb_sampler_valid(const jamba_sampler *p)
{
    return jmb_within(p->temperature, 0, FLT_MAX) && p->top_k >= 0 && jmb_within(p->top_p, 0, 1)
        && jmb_within(p->min_p, 0, 1) && p->repeat_window >= 0
        && (jmb_within(p->repeat_penalty, 0, 0) || jmb_within(p->repeat_penalty, 1e-3f, 1e3f));
}

/* Once for each token of the window; `order` is free for marks here. */
static void jmb_penalise(jamba_session *s, const jamba_sampler *p)
{
    uint32_t window = p->repeat_window ? (uint32_t)p->repeat_window : 64, i;
    uint32_t first = s->position > window ? s->position - window : 0;
    while (first < s->position && s->tokens[first] < 0) first++;
    for (i = first; i < s->position; i++) s->order[s->tokens[i]] = 0;
    for (i = first; i < s->position; i++) {
        float *logit = &s->candidates[s->tokens[i]];
        if (s->order[s->tokens[i]]++) continue;
        *logit = *logit > 0 ? *logit / p->repeat_penalty : *logit * p->repeat_penalty;
    }
}

enum { JMB_STRIDE = 256 }; /* logits looked at together, in 16 lanes that compilers vectorise */

static bool jmb_logit_bad(float logit, uint32_t allowed)
{
    uint32_t bits = jmb_bits_of(logit);
    return ((int32_t)(bits & 0x7fffffffu) > 0x7f7fffff) & (bits != allowed);
}

static bool jmb_stride_bad(const float *logits, uint32_t allowed)
{
    uint32_t bad[16] = { 0 }, i, lane;
    for (i = 0; i < JMB_STRIDE; i += 16)
        for (lane = 0; lane < 16; lane++) bad[lane] |= jmb_logit_bad(logits[i + lane], allowed);
    for (lane = 1; lane < 16; lane++) bad[0] |= bad[lane];
    return bad[0] != 0;
}

/* -1 when every candidate is finite or, after a filter, -infinity; else the first that is not. */
static int32_t jmb_find_bad(const float *logits, uint32_t vocab, bool filtered)
{
    uint32_t allowed = filtered ? 0xff800000u : 0, i = 0;
    while (i + JMB_STRIDE <= vocab && !jmb_stride_bad(logits + i, allowed)) i += JMB_STRIDE;
    while (i < vocab && !jmb_logit_bad(logits[i], allowed)) i++;
    return i < vocab ? (int32_t)i : -1;
}

static float jmb_stride_highest(const float *logits)
{
    float highest[16];
    uint32_t i, lane;
    memcpy(highest, logits, sizeof highest);
    for (i = 16; i < JMB_STRIDE; i += 16)
        for (lane = 0; lane < 16; lane++)
            highest[lane] = logits[i + lane] > highest[lane] ? logits[i + lane] : highest[lane];
    for (lane = 1; lane < 16; lane++) highest[0] = highest[lane] > highest[0] ? highest[lane] : highest[0];
    return highest[0];
}

/* The first of the highest. */
static int32_t jmb_argmax(const float *logits, uint32_t vocab)
{
    uint32_t i, best = 0;
    for (i = 0; i + JMB_STRIDE <= vocab; i += JMB_STRIDE) {
        float highest = jmb_stride_highest(logits + i);
        if (!(highest > logits[best])) continue;
        for (best = i; logits[best] != highest; best++) {}
    }
    for (; i < vocab; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

/* Turns the logits into unnormalised probabilities in place, the highest 1. */
static void jmb_soften(const jamba_session *s, float top, float temperature)
{
    uint32_t vocab = s->model->metadata.header.vocab, i;
    for (i = 0; i < vocab; i++) s->candidates[i] = (s->candidates[i] - top) / temperature;
    s->model->kernels->exp(s->candidates, vocab);
}

/* Of the highest probability 2^40; below 2^-40 of it a candidate has none and is never drawn. JMB_MAX_VOCAB of
 * them fit 64 bits. */
static uint64_t jmb_mass(float probability)
{
    return (uint64_t)(int64_t)(probability * 1099511627776.0f);
}

/* Orders as the probability, which is at most 1. */
static uint32_t jmb_rank_key(float probability)
{
    return jmb_bits_of(probability) << 2;
}

/* The candidates with one digit of the key. */
typedef struct jmb_digit {
    uint64_t mass;
    uint32_t count;
} jmb_digit;

enum { JMB_DIGITS = 256, JMB_FIRST_SHIFT = 24 };

/* The ranking up to a cut: how many candidates, their mass, the last one. */
typedef struct jmb_cut {
    uint64_t mass;
    uint32_t count;
    int32_t last;
} jmb_cut;

/* `list` NULL: of all of the first `count` tokens. */
static void jmb_count_digits(
    jmb_digit digits[JMB_DIGITS], const float *probability, const int32_t *list, uint32_t count, int shift)
{
    uint32_t i;
    memset(digits, 0, JMB_DIGITS * sizeof *digits);
    for (i = 0; i < count; i++) {
        float p = probability[list ? (uint32_t)list[i] : i];
        jmb_digit *digit = &digits[jmb_rank_key(p) >> shift & (JMB_DIGITS - 1)];
        digit->mass += jmb_mass(p);
        digit->count++;
    }
}

/* The digit within which the cut falls; what ranks before it is added to `cut`. */
static uint32_t jmb_cut_digit(const jmb_digit digits[JMB_DIGITS], uint32_t most, uint64_t reach, jmb_cut *cut)
{
    uint32_t i = JMB_DIGITS - 1;
    for (; i > 0 && cut->count + digits[i].count < most && cut->mass + digits[i].mass < reach; i--) {
        cut->count += digits[i].count;
        cut->mass += digits[i].mass;
    }
    return i;
}

/* Keeps the tokens whose key begins with `prefix`, in order. */
static uint32_t jmb_keep_prefix(
    const float *probability, const int32_t *list, uint32_t count, int shift, uint32_t prefix, int32_t *kept)
{
    uint32_t i, n = 0;
    for (i = 0; i < count; i++) {
        int32_t token = list ? list[i] : (int32_t)i;
        kept[n] = token;
        n += jmb_rank_key(probability[token]) >> shift == prefix;
    }
    return n;
}

/* Cuts the ranking where it has `most` candidates or the mass `reach` > 0, whichever comes first; all candidates
 * together have one of them. `first`: of all, at JMB_FIRST_SHIFT. */
static jmb_cut jmb_cut_ranking(jamba_session *s, const jmb_digit first[JMB_DIGITS], uint32_t most, uint64_t reach)
{
    jmb_cut cut = { 0, 0, 0 };
    jmb_digit digits[JMB_DIGITS];
    uint32_t n = s->model->metadata.header.vocab, prefix = jmb_cut_digit(first, most, reach, &cut), equal;
    uint64_t each;
    int shift;
    n = jmb_keep_prefix(s->candidates, NULL, n, JMB_FIRST_SHIFT, prefix, s->order);
    for (shift = JMB_FIRST_SHIFT - 8; shift >= 0; shift -= 8) {
        jmb_count_digits(digits, s->candidates, s->order, n, shift);
        prefix = prefix << 8 | jmb_cut_digit(digits, most, reach, &cut);
        n = jmb_keep_prefix(s->candidates, s->order, n, shift, prefix, s->order);
    }
    each = jmb_mass(s->candidates[s->order[0]]);
    equal = most - cut.count < n ? most - cut.count : n;
    if (each > 0 && (reach - cut.mass - 1) / each < equal) equal = (uint32_t)((reach - cut.mass - 1) / each) + 1;
    cut.count += equal;
    cut.mass += equal * each;
    cut.last = s->order[equal - 1];
    return cut;
}

static uint64_t jmb_mass_above(const float *probability, uint32_t vocab, float least)
{
    uint64_t mass = 0;
    uint32_t i;
    for (i = 0; i < vocab; i++) mass += probability[i] >= least ? jmb_mass(probability[i]) : 0;
    return mass;
}

/* SplitMix64 (Steele, Lea, Flood 2014); a double in [0, 1). */
static double jmb_random(uint64_t *seed)
{
    uint64_t z = *seed += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * (1.0 / 9007199254740992.0);
}

/* A point in `mass` > 0. */
static uint64_t jmb_random_mark(uint64_t *seed, uint64_t mass)
{
    uint64_t mark = (uint64_t)(jmb_random(seed) * (double)mass);
    return mark < mass ? mark : mass - 1;
}

/* Without top_k and top_p no ranking is needed: tokens follow each other by number. */
static int32_t jmb_draw_from_all(jamba_session *s, jamba_sampler *p)
{
    uint64_t mark = jmb_mass_above(s->candidates, s->model->metadata.header.vocab, p->min_p);
    uint32_t i;
    mark = jmb_random_mark(&p->seed, mark);
    for (i = 0;; i++) {
        uint64_t mass = s->candidates[i] >= p->min_p ? jmb_mass(s->candidates[i]) : 0;
        if (mark < mass) return (int32_t)i;
        mark -= mass;
    }
}

/* Mass of the candidates that top_k, top_p and min_p leave, in this order; top_p is a share of what top_k leaves. */
static uint64_t jmb_mass_left(jamba_session *s, const jmb_digit first[JMB_DIGITS], const jamba_sampler *p)
{
    uint32_t vocab = s->model->metadata.header.vocab, i;
    uint64_t mass = 0, above;
    for (i = 0; i < JMB_DIGITS; i++) mass += first[i].mass;
    if (p->top_k > 0 && (uint32_t)p->top_k < vocab)
        mass = jmb_cut_ranking(s, first, (uint32_t)p->top_k, UINT64_MAX).mass;
    if (p->top_p > 0 && p->top_p < 1) {
        double share = (double)mass * (double)p->top_p;
        uint64_t reach = (uint64_t)share;
        mass = jmb_cut_ranking(s, first, UINT32_MAX, (double)reach < share ? reach + 1 : reach).mass;
    }
    if (p->min_p == 0) return mass;
    above = jmb_mass_above(s->candidates, vocab, p->min_p);
    return mass < above ? mass : above;
}

static int32_t jmb_draw(jamba_session *s, jamba_sampler *p)
{
    jmb_digit first[JMB_DIGITS];
    uint64_t mark;
    if (p->top_k == 0 && (p->top_p == 0 || p->top_p == 1)) return jmb_draw_from_all(s, p);
    jmb_count_digits(first, s->candidates, NULL, s->model->metadata.header.vocab, JMB_FIRST_SHIFT);
    mark = jmb_random_mark(&p->seed, jmb_mass_left(s, first, p));
    return jmb_cut_ranking(s, first, UINT32_MAX, mark + 1).last;
}

/* Copies the logits and applies what comes before the draw. The filter is the host's: it runs with the
 * host's floating-point settings. */
static jamba_result jmb_prepare_candidates(jamba_session *s, const jamba_sampler *p, const float *logits)
{
    uint32_t vocab = s->model->metadata.header.vocab;
    int32_t bad = jmb_find_bad(logits, vocab, false);
    bool penalty = p->repeat_penalty > 0 && p->repeat_penalty != 1;
    jmb_fp_state saved;
    if (bad >= 0)
        return jmb_fail(&s->error, JAMBA_ERR_NUMERIC, 0, "the logit of token %d is not a finite number", bad);
    memcpy(s->candidates, logits, vocab * sizeof *logits);
    if (!penalty && !p->filter) return JAMBA_OK;
    saved = jmb_fp_enter();
    if (penalty) jmb_penalise(s, p);
    jmb_fp_leave(saved);
    if (p->filter) p->filter(p->filter_user, s->candidates, (int32_t)vocab);
    bad = jmb_find_bad(s->candidates, vocab, p->filter != NULL);
    if (bad >= 0)
        return jmb_fail(&s->error, JAMBA_ERR_NUMERIC, 0, "after the %s, the logit of token %d is not finite",
            p->filter ? "filter" : "penalty", bad);
    return JAMBA_OK;
}

static int32_t jmb_sample(jamba_session *s, jamba_sampler *p, const float *logits)
{
    uint32_t vocab = s->model->metadata.header.vocab;
    jmb_fp_state saved;
    int32_t token;
    bool allowed;
    JMB_TRY(jmb_prepare_candidates(s, p, logits));
    saved = jmb_fp_enter();
    token = jmb_argmax(s->candidates, vocab);
    allowed = jmb_finite(s->candidates[token]);
    if (allowed && p->temperature > 0) {
        jmb_soften(s, s->candidates[token], p->temperature);
        token = jmb_draw(s, p);
    }
    jmb_fp_leave(saved);
    return allowed ? token : jmb_fail(&s->error, JAMBA_ERR_FILTER, 0, "the logit filter allows no token");
}

/* ---- log-probabilities --------------------------------------------------------------------- */

/* The logarithm of mass / 2^40 >= 1, that is 2^e (1 + t). */
static float jmb_log_mass(uint64_t mass)
{
    uint32_t e = 40;
    float t;
    while (mass >> e > 1) e++;
    t = (float)(int32_t)(mass >> (e - 24) & 0xffffff) / 16777216.0f;
    return jmb_v_fma_scalar(jmb_v_set1_scalar((float)(int32_t)(e - 40)), jmb_v_set1_scalar(0.693147182f),
        jmb_log1p_scalar(jmb_v_set1_scalar(t))).f[0];
}

/* What turns a logit into a log-probability: the highest logit goes off, then `log`. */
typedef struct jmb_norm {
    float top, log;
} jmb_norm;

/* False when a logit is not a finite number. */
static bool jmb_norm_of(const jamba_session *s, const float *logits, jmb_norm *norm)
{
    uint32_t vocab = s->model->metadata.header.vocab;
    if (jmb_find_bad(logits, vocab, false) >= 0) return false;
    memcpy(s->candidates, logits, vocab * sizeof *logits);
    norm->top = logits[jmb_argmax(logits, vocab)];
    jmb_soften(s, norm->top, 1);
    norm->log = jmb_log_mass(jmb_mass_above(s->candidates, vocab, 0));
    return true;
}

static float jmb_logprob(const jmb_norm *norm, float logit)
{
    return logit - norm->top - norm->log;
}

static bool jmb_ranks_before(const jamba_candidate *a, const jamba_candidate *b)
{
    return a->logprob > b->logprob || (a->logprob == b->logprob && a->token < b->token);
}

/* Lets the entry `at` sink in a heap whose first entry ranks last. */
static void jmb_sink_candidate(jamba_candidate *heap, size_t count, size_t at)
{
    for (;;) {
        size_t child = 2 * at + 1;
        jamba_candidate entry = heap[at];
        if (child >= count) return;
        if (child + 1 < count && jmb_ranks_before(&heap[child], &heap[child + 1])) child++;
        if (!jmb_ranks_before(&entry, &heap[child])) return;
        heap[at] = heap[child];
        heap[child] = entry;
        at = child;
    }
}

static size_t jmb_top(const jamba_session *s, const float *logits, jamba_candidate *out, size_t count)
{
    uint32_t vocab = s->model->metadata.header.vocab, i;
    jamba_candidate next;
    jmb_norm norm;
    size_t n;
    if (count > vocab) count = vocab;
    if (count == 0 || !jmb_norm_of(s, logits, &norm)) return 0;
    for (i = 0; i < vocab; i++) {
        next.token = (int32_t)i;
        next.logprob = jmb_logprob(&norm, logits[i]);
        if (i < count) out[i] = next;
        if (i + 1 == count)
            for (n = count; n-- > 0;) jmb_sink_candidate(out, count, n);
        if (i < count || !jmb_ranks_before(&next, &out[0])) continue;
        out[0] = next;
        jmb_sink_candidate(out, count, 0);
    }
    for (n = count; n-- > 1;) {
        next = out[0];
        out[0] = out[n];
        out[n] = next;
        jmb_sink_candidate(out, n, 0);
    }
    return count;
}

static jamba_result jmb_check_logits(jamba_session *s)
{
    if (jamba_logits(s)) return JAMBA_OK;
    return jmb_fail(&s->error, JAMBA_ERR_ARGUMENT, 0, "there are no logits: evaluate a token first");
}

static jamba_result jmb_score_token(jamba_session *s, const float *logits, int32_t token, float *logprob)
{
    jmb_norm norm;
    jmb_fp_state saved = jmb_fp_enter();
    bool finite = jmb_norm_of(s, logits, &norm);
    if (finite) *logprob = jmb_logprob(&norm, logits[token]);
    jmb_fp_leave(saved);
    if (finite) return JAMBA_OK;
    return jmb_fail(&s->error, JAMBA_ERR_NUMERIC, 0, "a logit in front of token %d is not a finite number", token);
}

/* With a row of logits for each token of a pass, all of them but the first are scored after it. */
static jamba_result jmb_score(jamba_session *s, const int32_t *tokens, size_t count, float *logprobs)
{
    size_t vocab = jmb_pad16(s->model->metadata.header.vocab), done = 0, n, i;
    bool go_on;
    for (; done < count; done += n) {
        n = !s->on_logits ? 1 : count - done < s->chunk ? count - done : s->chunk;
        JMB_TRY(jmb_score_token(s, jamba_logits(s), tokens[done], &logprobs[done]));
        JMB_TRY(jamba_feed(s, tokens + done, n));
        JMB_TRY(jmb_step(&s, 1, 0, &go_on));
        for (i = 1; i < n; i++)
            JMB_TRY(jmb_score_token(s, s->logits + (i - 1) * vocab, tokens[done + i], &logprobs[done + i]));
        if (!go_on && done + n < count)
            return jmb_fail(&s->error, JAMBA_ERR_ABORTED, 0, "stopped by the progress callback");
    }
    return JAMBA_OK;
}

/* ===========================================================================================
 * >>talk - a conversation on a session
 *
 * s->turns says where in the log which turn begins; whether a reply is open, has ended, or nothing has begun is read
 * off it and the tokens fed, so that going back needs no other step. A reply's text runs through a stream and a
 * buffer, which begins with what was held back because a stop string may begin there.
 * =========================================================================================== */

static void jmb_set_turn(jamba_session *s, uint32_t at, int bits)
{
    s->turns[at] = (uint8_t)(s->turns[at] | bits);
}

/* The last place at or before `at` with one of `bits`; UINT32_MAX when there is none. */
static uint32_t jmb_turn_before(const jamba_session *s, uint32_t at, int bits)
{
    while (!(s->turns[at] & bits))
        if (at-- == 0) break;
    return at;
}

/* The first place from `at` on with one of `bits`; UINT32_MAX when there is none. */
static uint32_t jmb_turn_after(const jamba_session *s, uint32_t at, int bits)
{
    for (; at <= s->fed; at++)
        if (s->turns[at] & bits) return at;
    return UINT32_MAX;
}

/* Where the reply begins that no message has closed yet; UINT32_MAX when there is none. */
static uint32_t jmb_open_reply(const jamba_session *s)
{
    uint32_t last = jmb_turn_before(s, s->fed, JMB_TURN_ANY);
    return last == UINT32_MAX || (s->turns[last] & JMB_TURN_MESSAGE) ? UINT32_MAX : last;
}

static bool jmb_has_chat(const jamba_model *model)
{
    return jmb_find_string(&model->metadata, "chat.format") != NULL;
}

/* Tokens of messages in the chat format, behind the log; nothing is queued yet. */
static jamba_result jmb_write_turns(
    jamba_session *s, const jamba_message *messages, size_t count, unsigned flags, size_t *tokens)
{
    const jamba_model *m = s->model;
    uint32_t room = s->context - s->fed;
    jamba_result result = jmb_chat_encode(&m->metadata, &m->tokenizer, &m->heap.allocator, messages, count, flags,
        s->tokens + s->fed, room, tokens, &s->error);
    return result == JAMBA_OK || *tokens > room ? jmb_check_room(s, *tokens) : result;
}

/* A pass that ended here before the turn began left no mark. */
static void jmb_mark_turn(jamba_session *s)
{
    if (s->mark_room && s->position == s->fed) jmb_put_mark(s);
}

static jamba_result jmb_say(jamba_session *s, const char *role, const char *content)
{
    const jamba_message message = { role, content };
    unsigned reply = jmb_open_reply(s) == UINT32_MAX ? 0 : JAMBA_CHAT_CONTINUE;
    unsigned flags = s->fed == 0 ? (unsigned)JAMBA_CHAT_BEGIN : reply;
    bool system = role && strcmp(role, "system") == 0;
    size_t count, front = 0; /* tokens, and those in front of the message proper */
    if (flags) JMB_TRY(jmb_write_turns(s, NULL, 0, flags, &front));
    JMB_TRY(jmb_write_turns(s, &message, 1, flags, &count));
    if (count == 0) return JAMBA_OK;
    jmb_set_turn(s, s->fed, system ? JMB_TURN_SYSTEM : JMB_TURN_SAID);
    jmb_mark_turn(s);
    if (!system) jmb_set_turn(s, s->fed + (uint32_t)(front < count ? front : count), JMB_TURN_PROPER);
    jmb_queue_up(s, count);
    return JAMBA_OK;
}

/* ---- replies ------------------------------------------------------------------------------- */

static jamba_result jmb_begin_reply(jamba_session *s, unsigned flags)
{
    size_t count = 0;
    if (flags) JMB_TRY(jmb_write_turns(s, NULL, 0, flags, &count));
    if (s->fed + count == 0)
        return jmb_fail(&s->error, JAMBA_ERR_ARGUMENT, 0, "nothing to reply to: say or feed something first");
    jmb_queue_up(s, count);
    jmb_set_turn(s, s->fed, JMB_TURN_REPLY);
    jmb_mark_turn(s);
    return JAMBA_OK;
}

/* Opens a reply where none is open. What was fed behind the end of one gets a reply of its own, without anything that
 * opens it, as does what is fed to a model without a chat format. */
static jamba_result jmb_open(jamba_session *s)
{
    uint32_t reply = jmb_open_reply(s), ended = jmb_turn_before(s, s->fed, JMB_TURN_ENDED);
    unsigned begin = s->fed == 0 ? (unsigned)JAMBA_CHAT_BEGIN : 0;
    if (reply == UINT32_MAX) return jmb_begin_reply(s, jmb_has_chat(s->model) ? JAMBA_CHAT_REPLY | begin : 0);
    if (ended == UINT32_MAX || ended < reply || ended == s->fed) return JAMBA_OK;
    return jmb_begin_reply(s, 0);
}

/* Where the text begins that a reply's tokens stand in: a stream takes spaces off its front. */
static uint32_t jmb_text_begin(const jamba_session *s)
{
    return jmb_has_chat(s->model) ? jmb_open_reply(s) : 0;
}

/* Brings the stream to where the session is, if it has come there otherwise than by a reply. */
static void jmb_catch_up(jamba_session *s, unsigned flags)
{
    jmb_reply *r = &s->reply;
    uint32_t i;
    if (r->at == s->fed) return;
    memset(&r->stream, 0, sizeof r->stream);
    i = jmb_text_begin(s);
    r->stream.started = i < s->fed && s->tokens[i] < 0; /* behind text that a saved state left out */
    for (; i < s->fed; i++)
        jmb_decode_next(&s->model->tokenizer, &r->stream, s->tokens[i], flags, r->text);
    r->size = r->given = 0;
    r->at = s->fed;
}

/* The first byte of the first stop string in the text; its size when there is none. */
static uint32_t jmb_find_stop(const jmb_reply *r, const jamba_reply_params *p)
{
    uint32_t i;
    size_t k;
    for (i = 0; i < r->size; i++)
        for (k = 0; k < p->stop_count; k++) {
            size_t length = strlen(p->stops[k]);
            if (length <= r->size - i && memcmp(r->text + i, p->stops[k], length) == 0) return i;
        }
    return r->size;
}

/* How much of the text cannot be the beginning of a stop string, none of which is in it. */
static uint32_t jmb_safe_text(const jmb_reply *r, const jamba_reply_params *p)
{
    uint32_t i = r->size < JAMBA_STOP_MAX ? 0 : r->size - (JAMBA_STOP_MAX - 1);
    size_t k;
    for (; i < r->size; i++)
        for (k = 0; k < p->stop_count; k++)
            if (strncmp(r->text + i, p->stops[k], r->size - i) == 0) return i;
    return r->size;
}

/* The token that holds the byte of text at `offset` from where it begins, or its character; what is fed when the text
 * of all tokens, which *total then says, is not that long. */
static uint32_t jmb_token_at(const jamba_session *s, unsigned flags, uint64_t offset, uint64_t *total)
{
    jamba_text_stream stream;
    char text[JAMBA_TEXT_MAX];
    uint32_t i, first = 0; /* token of the unfinished character */
    memset(&stream, 0, sizeof stream);
    *total = 0;
    for (i = jmb_text_begin(s); i < s->fed; i++) {
        bool held = stream.held_count > 0;
        size_t size = jmb_decode_next(&s->model->tokenizer, &stream, s->tokens[i], flags, text);
        if (*total + size > offset) return held && *total == offset ? first : i;
        if (!held || size > 0) first = i;
        *total += size;
    }
    return stream.held_count > 0 && *total == offset ? first : s->fed;
}

/* Takes back the tokens that hold the last `size` bytes of text, when a mark of this reply or cached keys and values
 * alone lead there. */
static void jmb_take_back(jamba_session *s, unsigned flags, uint32_t size)
{
    uint64_t total, ignored;
    uint32_t begin = jmb_open_reply(s), fed = s->fed, target, i;
    bool cheap = s->model->plan.state_floats == 0;
    jmb_token_at(s, flags, UINT64_MAX, &total);
    target = jmb_token_at(s, flags, total - size, &ignored);
    if (target < begin) target = begin;
    for (i = 0; i < s->mark_count; i++)
        cheap = cheap || (s->marks[i].position >= begin && s->marks[i].position <= target);
    if (cheap && target < s->fed && jmb_rewind(s, target) == JAMBA_OK) jmb_cut_turns(s, target, fed);
}

/* The reply ends here; the first `given` bytes of its text are the last of it. */
static void jmb_end_reply(jamba_session *s, uint32_t given)
{
    s->reply.size = s->reply.given = given;
    s->reply.at = 0;
    jmb_set_turn(s, s->fed, JMB_TURN_ENDED);
}

/* With the rest of the text. */
static void jmb_flush_reply(jamba_session *s, const jamba_reply_params *p)
{
    jmb_reply *r = &s->reply;
    r->size += (uint32_t)jmb_decode_next(&s->model->tokenizer, &r->stream, -1, 0, r->text + r->size);
    jmb_end_reply(s, jmb_find_stop(r, p));
}

/* Takes a token that the model has chosen into the reply. */
static void jmb_reply_token(jamba_session *s, const jamba_reply_params *p, int32_t token)
{
    jmb_reply *r = &s->reply;
    uint32_t before = r->size, stop;
    r->size +=
        (uint32_t)jmb_decode_next(&s->model->tokenizer, &r->stream, token, p->flags, r->text + r->size);
    stop = jmb_find_stop(r, p);
    if (stop < r->size) {
        if (stop <= before) jmb_take_back(s, p->flags, before - stop);
        jmb_end_reply(s, stop);
        return;
    }
    s->tokens[s->fed] = token;
    jmb_queue_up(s, 1);
    r->at = s->fed;
    r->given = jmb_safe_text(r, p);
}

static jamba_result jmb_reply_next(jamba_session *s, const jamba_reply_params *p, uint64_t budget_us)
{
    int32_t token;
    if (p->max_tokens && s->fed - jmb_open_reply(s) >= (uint32_t)p->max_tokens) {
        jmb_flush_reply(s, p);
        return JAMBA_OK;
    }
    JMB_TRY(jmb_check_room(s, 1));
    JMB_TRY(jamba_step(s, budget_us));
    token = jamba_sample(s, p->sampler);
    if (token < 0) return (jamba_result)token;
    if (jamba_token_is_end(s->model, token)) jmb_flush_reply(s, p);
    else jmb_reply_token(s, p, token);
    return JAMBA_OK;
}

/* Until there is text, or the end. */
static jamba_result jmb_reply_run(jamba_session *s, const jamba_reply_params *p)
{
    jmb_reply *r = &s->reply;
    uint64_t start = p->budget_us ? s->now_us(s->now_user) : 0, spent = 0;
    r->size -= r->given;
    memmove(r->text, r->text + r->given, r->size);
    r->given = 0;
    JMB_TRY(jmb_open(s));
    if (!(s->turns[s->fed] & JMB_TURN_ENDED)) jmb_catch_up(s, p->flags);
    while (r->given == 0 && !(s->turns[s->fed] & JMB_TURN_ENDED)) {
        if (p->budget_us && spent >= p->budget_us) return JAMBA_PENDING;
        JMB_TRY(jmb_reply_next(s, p, p->budget_us ? p->budget_us - spent : 0));
        if (p->budget_us) spent = s->now_us(s->now_user) - start;
    }
    return JAMBA_OK;
}

static jamba_result jmb_check_reply(jamba_session *s, const jamba_reply_params *p)
{
    size_t i;
    if (p->max_tokens < 0)
        return jmb_fail(&s->error, JAMBA_ERR_ARGUMENT, 0, "max_tokens is %d, below 0", p->max_tokens);
    if (p->sampler && !jmb_sampler_valid(p->sampler))
        return jmb_fail(&s->error, JAMBA_ERR_ARGUMENT, 0, "a sampler field is out of range");
    if (p->stop_count && !p->stops) return jmb_fail(&s->error, JAMBA_ERR_ARGUMENT, 0, "stops is NULL");
    for (i = 0; i < p->stop_count; i++) {
        size_t length = p->stops[i] ? strlen(p->stops[i]) : 0;
        if (length == 0 || length > JAMBA_STOP_MAX)
            return jmb_fail(&s->error, JAMBA_ERR_ARGUMENT, 0, "stop string %z is NULL or not of 1 to %d bytes", i,
                (int)JAMBA_STOP_MAX);
        if (jmb_utf8_prefix((const uint8_t *)p->stops[i], length) < length)
            return jmb_fail(&s->error, JAMBA_ERR_ARGUMENT, 0, "stop string %z is not valid UTF-8", i);
    }
    return JAMBA_OK;
}

/* ---- restart ------------------------------------------------------------------------------- */

/* Where a message itself begins, behind what begins a conversation or closes a reply; `at` when going back has left
 * nothing of it. */
static uint32_t jmb_message_proper(const jamba_session *s, uint32_t at)
{
    uint32_t proper = jmb_turn_after(s, at, JMB_TURN_PROPER), next = jmb_turn_after(s, at + 1, JMB_TURN_ANY);
    return proper == UINT32_MAX || proper > next ? at : proper;
}

/* The `turns`-th last message, the first when there are fewer. */
static uint32_t jmb_last_messages(const jamba_session *s, uint32_t first, int32_t turns)
{
    uint32_t at = s->fed + 1;
    while (turns-- > 0 && at > first) at = jmb_turn_before(s, at - 1, JMB_TURN_SAID);
    return at;
}

/* Goes back to `head`, and moves the tokens and turns from `from` on there, whose log stands yet. */
static jamba_result jmb_close_gap(jamba_session *s, uint32_t head, uint32_t from)
{
    uint32_t kept = s->fed - from;
    bool caught_up = s->reply.at == s->fed;
    JMB_TRY(jmb_rewind(s, head));
    memmove(s->tokens + head, s->tokens + from, kept * sizeof *s->tokens);
    memmove(s->turns + head + 1, s->turns + from + 1, kept);
    memset(s->turns + head + kept + 1, 0, from - head);
    jmb_queue_up(s, kept);
    if (caught_up) s->reply.at = s->fed;
    return JAMBA_OK;
}

static jamba_result jmb_restart(jamba_session *s, int32_t turns)
{
    uint32_t first = jmb_turn_after(s, 0, JMB_TURN_SAID), last, head, from;
    int stays, moves; /* of the bits at head and from: what is in front of the message there, and what is behind it */
    if (first == UINT32_MAX)
        return jmb_fail(&s->error, JAMBA_ERR_CONTEXT, 0, "no message was said that could be left out");
    head = jmb_message_proper(s, first);
    last = jmb_last_messages(s, first, turns);
    from = jmb_message_proper(s, last);
    if (from == head)
        return jmb_fail(&s->error, JAMBA_ERR_CONTEXT, 0, "%d turns leave nothing out: ask for fewer", turns);
    if (from < s->fed && s->tokens[from] < 0)
        return jmb_fail(&s->error, JAMBA_ERR_ARGUMENT, 0, "a restart needs tokens that the saved state left out");
    if (!jmb_pages_fit(s, head, head + (s->fed - from)))
        return jmb_fail(&s->error, JAMBA_ERR_CONTEXT, 0, "forks hold pages of what came after token %u", head);
    stays = s->turns[head] & (first < head ? JMB_TURN_PROPER : 0xff);
    moves = s->turns[from] & (last < from ? 0xff : 0);
    JMB_TRY(jmb_close_gap(s, head, from));
    s->turns[head] = (uint8_t)(stays | moves);
    return JAMBA_OK;
}

/* Writes all turns but the first `skip`; how many there are. */
static size_t jmb_list_turns(const jamba_session *s, jamba_turn *out, size_t skip)
{
    static const struct {
        int bit;
        jamba_turn_kind kind;
    } kinds[] = { { JMB_TURN_REPLY, JAMBA_TURN_REPLY }, { JMB_TURN_SYSTEM, JAMBA_TURN_SYSTEM },
        { JMB_TURN_SAID, JAMBA_TURN_SAID } };
    size_t count = 0, k;
    uint32_t at;
    for (at = 0; at <= s->fed; at++)
        for (k = 0; k < 3; k++) {
            if (!(s->turns[at] & kinds[k].bit)) continue;
            if (out && count >= skip) {
                out[count - skip].position = (int32_t)at;
                out[count - skip].kind = kinds[k].kind;
            }
            count++;
        }
    return count;
}

/* ---- choosing among texts ------------------------------------------------------------------ */

/* A token behind those above it: options that begin alike share nodes. Node 0 is where the session stands. */
typedef struct jmb_branch {
    int32_t token;
    uint32_t parent, child, sibling; /* 0: none */
    float score;                     /* log-probability of all tokens down to here */
    jamba_session *session;          /* that has come to here */
} jmb_branch;

typedef struct jmb_choice {
    jamba_session *session;
    jmb_heap heap;
    jmb_branch *branches; /* parents before their children */
    uint32_t branch_count;
    uint32_t *ends;       /* the branch that each option ends with */
    float *scores;
    jamba_session **batch; /* the session itself, which lends its scratch, then forks */
    int32_t *tokens;
    uint32_t longest;      /* tokens of an option */
} jmb_choice;

static jamba_result jmb_encode_option(
    const jamba_session *s, const char *option, int32_t *tokens, size_t capacity, size_t *count, jamba_error *error)
{
    const jamba_model *m = s->model;
    jmb_piece piece;
    piece.text = option;
    piece.length = strlen(option);
    piece.special = false;
    return jmb_encode_text(&m->tokenizer, &m->heap.allocator, &piece, 1, -1, false, tokens, capacity, count, error);
}

/* Checks the options and counts their tokens. */
static jamba_result jmb_measure_options(
    jmb_choice *c, const char *const *options, size_t count, uint64_t *total, jamba_error *error)
{
    size_t i, tokens;
    for (*total = i = 0; i < count; i++) {
        if (!options[i]) return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "option %z is NULL", i);
        JMB_TRY(jmb_encode_option(c->session, options[i], NULL, 0, &tokens, error));
        if (tokens == 0 || tokens > JMB_MAX_CONTEXT / 2)
            return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "option %z has %z tokens", i, tokens);
        if (tokens > c->longest) c->longest = (uint32_t)tokens;
        *total = jmb_add(*total, tokens);
    }
    return JAMBA_OK;
}

/* The child of a branch with this token, new where there is none. */
static uint32_t jmb_grow_branch(jmb_choice *c, uint32_t parent, int32_t token)
{
    uint32_t *at = &c->branches[parent].child;
    for (; *at; at = &c->branches[*at].sibling)
        if (c->branches[*at].token == token) return *at;
    c->branches[c->branch_count].token = token;
    c->branches[c->branch_count].parent = parent;
    return *at = c->branch_count++;
}

static jamba_result jmb_plant_options(jmb_choice *c, const char *const *options, size_t count, jamba_error *error)
{
    size_t i, k, tokens;
    uint64_t total;
    JMB_TRY(jmb_measure_options(c, options, count, &total, error));
    if (total >= UINT32_MAX) return jmb_no_memory(error);
    c->branches = (jmb_branch *)jmb_heap_take(&c->heap, total + 1, sizeof *c->branches);
    c->ends = (uint32_t *)jmb_heap_take(&c->heap, count, sizeof *c->ends);
    c->scores = (float *)jmb_heap_take(&c->heap, count, sizeof *c->scores);
    c->batch = (jamba_session **)jmb_heap_take(&c->heap, (uint64_t)count + 1, sizeof *c->batch);
    c->tokens = (int32_t *)jmb_heap_take(&c->heap, c->longest, sizeof *c->tokens);
    if (!c->branches || !c->ends || !c->scores || !c->batch || !c->tokens) return jmb_no_memory(error);
    c->branch_count = 1;
    c->branches[0].session = c->session;
    for (i = 0; i < count; i++) {
        JMB_TRY(jmb_encode_option(c->session, options[i], c->tokens, c->longest, &tokens, error));
        for (k = 0; k < tokens; k++) c->ends[i] = jmb_grow_branch(c, c->ends[i], c->tokens[k]);
    }
    return JAMBA_OK;
}

/* Scores the children of a branch whose session stands there. */
static jamba_result jmb_score_branch(jmb_choice *c, uint32_t at)
{
    const jmb_branch *branch = &c->branches[at];
    const float *logits = jamba_logits(branch->session);
    jmb_fp_state saved = jmb_fp_enter();
    jmb_norm norm;
    bool finite = jmb_norm_of(branch->session, logits, &norm);
    uint32_t i;
    for (i = branch->child; finite && i; i = c->branches[i].sibling)
        c->branches[i].score = branch->score + jmb_logprob(&norm, logits[c->branches[i].token]);
    jmb_fp_leave(saved);
    if (finite) return JAMBA_OK;
    return jmb_fail(&c->session->error, JAMBA_ERR_NUMERIC, 0, "a logit is not a finite number");
}

static jamba_result jmb_fork_branch(jmb_choice *c, uint32_t at, uint32_t child)
{
    jamba_session *fork;
    JMB_TRY(jamba_session_fork(&fork, c->branches[at].session, (int32_t)c->longest, &c->session->error));
    fork->on_logits = NULL;
    fork->progress = NULL;
    fork->mark_room = 0;
    c->branches[child].session = fork;
    return JAMBA_OK;
}

/* Each child that goes on gets a session and its token: the first one the branch's own session, but that of the
 * conversation, the others forks. *count of them go to the batch. */
static jamba_result jmb_part_branch(jmb_choice *c, uint32_t at, size_t *count)
{
    jmb_branch *b = c->branches;
    uint32_t i, heir = 0;
    for (i = b[at].child; i; i = b[i].sibling) {
        if (!b[i].child) continue;
        if (at && !heir) heir = i;
        else JMB_TRY(jmb_fork_branch(c, at, i));
    }
    if (heir) b[heir].session = b[at].session;
    else if (at) jamba_session_free(b[at].session);
    b[at].session = NULL;
    for (i = b[at].child; i; i = b[i].sibling) {
        if (!b[i].child) continue;
        JMB_TRY(jamba_feed(b[i].session, &b[i].token, 1));
        c->batch[++*count] = b[i].session;
    }
    return JAMBA_OK;
}

/* Walks down level by level, all branches of one in common passes. Children have higher numbers, and are met only once
 * they have been evaluated. */
static jamba_result jmb_walk_branches(jmb_choice *c)
{
    size_t count;
    uint32_t i;
    do {
        for (count = 0, i = c->branch_count; i-- > 0;) {
            if (!c->branches[i].session) continue;
            JMB_TRY(jmb_score_branch(c, i));
            JMB_TRY(jmb_part_branch(c, i, &count));
        }
        c->batch[0] = c->session;
        JMB_TRY(jamba_step_batch(c->batch, count + 1, 0));
    } while (count > 0);
    return JAMBA_OK;
}

/* The likeliest, or one drawn by its share. */
static int32_t jmb_pick(const jmb_choice *c, size_t count, jamba_sampler *sampler)
{
    float *share = c->scores, highest;
    uint64_t total = 0, mark;
    size_t i, best = 0;
    for (i = 1; i < count; i++)
        if (share[i] > share[best]) best = i;
    if (!sampler || sampler->temperature == 0) return (int32_t)best;
    highest = share[best];
    if (!jmb_finite(highest)) return (int32_t)best; /* logits further apart than a float reaches */
    for (i = 0; i < count; i++) share[i] = (share[i] - highest) / sampler->temperature;
    c->session->model->kernels->exp(share, count);
    for (i = 0; i < count; i++) total += jmb_mass(share[i]);
    mark = jmb_random_mark(&sampler->seed, total);
    for (i = 0; i + 1 < count && mark >= jmb_mass(share[i]); i++) mark -= jmb_mass(share[i]);
    return (int32_t)i;
}

static jamba_result jmb_choose(
    jmb_choice *c, const char *const *options, size_t count, jamba_sampler *sampler, float *logprobs, int32_t *choice)
{
    jmb_fp_state saved;
    size_t i;
    JMB_TRY(jmb_plant_options(c, options, count, &c->session->error));
    JMB_TRY(jmb_walk_branches(c));
    for (i = 0; i < count; i++) c->scores[i] = c->branches[c->ends[i]].score;
    if (logprobs) memcpy(logprobs, c->scores, count * sizeof *logprobs);
    saved = jmb_fp_enter();
    *choice = jmb_pick(c, count, sampler);
    jmb_fp_leave(saved);
    return JAMBA_OK;
}

static void jmb_choice_free(jmb_choice *c)
{
    uint32_t i;
    for (i = 1; i < c->branch_count; i++) jamba_session_free(c->branches[i].session);
    jmb_heap_free(&c->heap);
}

/* ===========================================================================================
 * >>public - the API: arguments are checked here, the work is above
 * =========================================================================================== */

JAMBA_API int jamba_version(void)
{
    return JAMBA_VERSION;
}

#define JMB_STRING2(x) #x
#define JMB_STRING(x) JMB_STRING2(x)

JAMBA_API const char *jamba_build_info(void)
{
    return JMB_STRING(JAMBA_VERSION_MAJOR) "." JMB_STRING(JAMBA_VERSION_MINOR) "." JMB_STRING(JAMBA_VERSION_PATCH)
#if defined(_OPENMP)
        " openmp"
#endif
#if (defined(__GNUC__) || defined(__clang__)) && !defined(__OPTIMIZE__)
        " unoptimised"
#endif
        ;
}

JAMBA_API const char *jamba_result_name(jamba_result result)
{
    switch (result) {
#define JMB_X(name, value, text) \
    case name: return text;
        JAMBA_RESULTS(JMB_X)
#undef JMB_X
    default: return "unknown result";
    }
}

JAMBA_API jamba_source jamba_from_file(const char *path)
{
    jamba_source source;
    memset(&source, 0, sizeof source);
    source.path = path;
    return source;
}

JAMBA_API jamba_source jamba_from_memory(const void *data, size_t size)
{
    jamba_source source;
    memset(&source, 0, sizeof source);
    source.data = data;
    source.size = size;
    return source;
}

JAMBA_API jamba_source jamba_from_io(jamba_io io)
{
    jamba_source source;
    memset(&source, 0, sizeof source);
    source.io = io;
    return source;
}

JAMBA_API jamba_result jamba_model_load(
    jamba_model **out, jamba_source source, const jamba_model_params *params, jamba_error *error)
{
    jamba_model_params standard;
    jmb_heap heap = { jmb_allocator_or_default(params ? params->allocator : NULL), NULL, 0 };
    jamba_model *model;
    jamba_result result;
    memset(&standard, 0, sizeof standard);
    if (!out) return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "nowhere to put the model: out is NULL");
    *out = NULL;
    JMB_TRY(jmb_check_allocator(params ? params->allocator : NULL, error));
    model = (jamba_model *)jmb_heap_take(&heap, 1, sizeof *model);
    if (!model) return jmb_no_memory(error);
    model->heap = heap;
    result = jmb_load(model, &source, params ? params : &standard, error);
    if (result == JAMBA_OK) *out = model;
    else jamba_model_free(model);
    return result;
}

JAMBA_API void jamba_model_free(jamba_model *model)
{
    jmb_heap heap;
    if (!model) return;
    if (model->mapping) jmb_file_unmap(model->mapping, model->size);
    heap = model->heap; /* the model itself is one of its blocks */
    jmb_heap_free(&heap);
}

/* Numbers in the model's matrices and vectors, and those that one token uses. */
static void jmb_count_parameters(const jmb_metadata *m, uint64_t *all, uint64_t *active)
{
    uint32_t i;
    *all = *active = 0;
    for (i = 0; i < m->header.tensors; i++) {
        const jmb_tensor *t = &m->tensors[i];
        uint64_t n = (uint64_t)t->rows * t->cols * (jmb_roles[t->role].paired ? 2 : 1);
        bool expert = t->unit != JMB_NONE && m->blocks[t->unit].kind == JMB_MOE
            && (t->role == JMB_ROLE_GATE_UP || t->role == JMB_ROLE_DOWN);
        if (t->role == JMB_ROLE_ROPE) continue;
        *all += n;
        if (!expert || t->index < m->blocks[t->unit].top_k) *active += n;
    }
}

JAMBA_API void jamba_model_describe(const jamba_model *model, jamba_model_info *out)
{
    const jmb_header *h;
    const char *architecture;
    uint32_t i;
    if (!out) return;
    memset(out, 0, sizeof *out);
    if (!model) return;
    h = &model->metadata.header;
    architecture = jmb_find_string(&model->metadata, "architecture");
    out->architecture = architecture ? architecture : "";
    out->isa = model->kernels->name;
    out->type = jmb_type_names[h->type];
    out->vocab = (int32_t)h->vocab;
    out->hidden = (int32_t)h->hidden;
    out->blocks = (int32_t)h->blocks;
    out->attention_blocks = (int32_t)model->plan.attention_blocks;
    out->recurrent_blocks = (int32_t)model->plan.recurrent_blocks;
    out->context = (int32_t)h->context;
    out->token_bos = h->bos == JMB_NO_TOKEN ? -1 : (int32_t)h->bos;
    out->token_pad = h->pad == JMB_NO_TOKEN ? -1 : (int32_t)h->pad;
    out->eos_count = (int32_t)h->eos_count;
    for (i = 0; i < h->eos_count; i++) out->token_eos[i] = (int32_t)jmb_eos(h, i);
    jmb_count_parameters(&model->metadata, &out->parameters, &out->parameters_active);
    out->kv_bytes_per_token = model->plan.kv_floats * 2;
    out->state_bytes = model->plan.state_numbers * 4;
    memcpy(out->identity, h->identity, 32);
    out->memory.mapped = model->mapping ? (size_t)model->size : 0;
    out->memory.weights = model->heap.total;
}

JAMBA_API const char *jamba_model_meta(const jamba_model *model, const char *key)
{
    return model && key ? jmb_find_string(&model->metadata, key) : NULL;
}

JAMBA_API jamba_result jamba_adapter_load(
    jamba_adapter **out, const jamba_model *model, jamba_source source, jamba_error *error)
{
    jmb_heap heap = { jmb_allocator_or_default(NULL), NULL, 0 };
    jamba_adapter *adapter;
    jamba_result result;
    if (!out) return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "nowhere to put the adapter: out is NULL");
    *out = NULL;
    if (!model) return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "an adapter needs its model");
    heap.allocator = model->heap.allocator;
    adapter = (jamba_adapter *)jmb_heap_take(&heap, 1, sizeof *adapter);
    if (!adapter) return jmb_no_memory(error);
    adapter->heap = heap;
    adapter->model = model;
    result = jmb_load_adapter(adapter, &source, error);
    if (result == JAMBA_OK) *out = adapter;
    else jamba_adapter_free(adapter);
    return result;
}

JAMBA_API void jamba_adapter_free(jamba_adapter *adapter)
{
    jmb_heap heap;
    if (!adapter) return;
    heap = adapter->heap; /* the adapter itself is one of its blocks */
    jmb_heap_free(&heap);
}

JAMBA_API void jamba_adapter_describe(const jamba_adapter *adapter, jamba_adapter_info *out)
{
    uint32_t i;
    if (!out) return;
    memset(out, 0, sizeof *out);
    if (!adapter) return;
    out->matrices = (int32_t)adapter->header.entries;
    out->rank = (int32_t)adapter->rank;
    for (i = 0; i < adapter->header.entries; i++) {
        const jmb_lora *l = &adapter->loras[i];
        uint64_t pair = jmb_roles[l->role].paired ? 2 : 1;
        out->parameters += (uint64_t)l->a.rows * l->a.cols + (uint64_t)l->b.rows * l->b.cols * pair;
    }
    out->memory = adapter->heap.total;
    out->hash = adapter->header.hash;
}

JAMBA_API jamba_result jamba_session_estimate(
    const jamba_model *model, const jamba_session_params *params, jamba_memory *out)
{
    jamba_session_params standard;
    jamba_session s;
    memset(&standard, 0, sizeof standard);
    if (!model || !out) return JAMBA_ERR_ARGUMENT;
    memset(out, 0, sizeof *out);
    JMB_TRY(jmb_session_prepare(&s, model, params ? params : &standard, NULL));
    *out = s.memory;
    return JAMBA_OK;
}

JAMBA_API jamba_result jamba_session_create(
    jamba_session **out, const jamba_model *model, const jamba_session_params *params, jamba_error *error)
{
    jamba_session_params standard;
    jamba_session prepared;
    memset(&standard, 0, sizeof standard);
    if (!out) return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "nowhere to put the session: out is NULL");
    *out = NULL;
    if (!model) return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "a session needs a model");
    JMB_TRY(jmb_session_prepare(&prepared, model, params ? params : &standard, error));
    JMB_TRY(jmb_session_make(out, &prepared, error));
    memset((*out)->turns, 0, (size_t)(*out)->context + 1);
    jmb_session_clear(*out);
    return JAMBA_OK;
}

JAMBA_API jamba_result jamba_session_fork_estimate(const jamba_session *source, int32_t tokens, jamba_memory *out)
{
    jamba_session s;
    if (!source || !out) return JAMBA_ERR_ARGUMENT;
    memset(out, 0, sizeof *out);
    JMB_TRY(jmb_fork_prepare(&s, source, tokens, NULL));
    *out = s.memory;
    if (source->own.adapters) out->scratch += (size_t)jmb_adapters_bytes(&s, source->own.adapters);
    return JAMBA_OK;
}

JAMBA_API jamba_result jamba_session_fork(
    jamba_session **out, const jamba_session *source, int32_t tokens, jamba_error *error)
{
    jamba_session prepared;
    jamba_result result = JAMBA_OK;
    if (!out) return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "nowhere to put the session: out is NULL");
    *out = NULL;
    if (!source) return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "a fork needs a session to begin from");
    JMB_TRY(jmb_fork_prepare(&prepared, source, tokens, error));
    JMB_TRY(jmb_session_make(out, &prepared, error));
    if (source->own.adapters) result = jmb_set_adapters(*out, source->own.adapters, error);
    if (result == JAMBA_OK) {
        jmb_fork_copy(*out, source);
    } else {
        jamba_session_free(*out);
        *out = NULL;
    }
    return result;
}

JAMBA_API void jamba_session_free(jamba_session *session)
{
    jamba_allocator allocator;
    if (!session) return;
    jmb_leave_pass(session);
    if (session->holder) jmb_pass_work(session, session, 0, 0); /* of others, in its scratch */
    jmb_pages_release(session, 0);
    if (session->block) jmb_block_drop(session->block);
    jmb_drop_adapters(session);
    allocator = session->allocator;
    allocator.free(allocator.user, session, session->size);
}

JAMBA_API void jamba_session_reset(jamba_session *session)
{
    if (!session || session->busy) return;
    jmb_cut_turns(session, 0, session->fed);
    jmb_session_clear(session);
}

JAMBA_API void jamba_session_describe(const jamba_session *session, jamba_session_info *out)
{
    if (!out) return;
    memset(out, 0, sizeof *out);
    if (!session) return;
    out->position = (int32_t)session->position;
    out->pending = (int32_t)(session->fed - session->position);
    out->context = (int32_t)session->context;
    out->chunk = (int32_t)session->chunk;
    out->width = session->executor.width;
    out->marks = (int32_t)session->mark_count;
    out->memory = session->memory;
    if (session->own.adapters) out->memory.scratch += session->own.adapters->size;
}

JAMBA_API const jamba_error *jamba_session_error(const jamba_session *session)
{
    return session ? &session->error : NULL;
}

JAMBA_API const int32_t *jamba_session_tokens(const jamba_session *session, size_t *count)
{
    if (count) *count = session ? session->fed : 0;
    return session ? session->tokens : NULL;
}

/* Callbacks must not work on the session that called them. */
static jamba_result jmb_check_idle(jamba_session *s)
{
    if (!s->busy) return JAMBA_OK;
    return jmb_fail(&s->error, JAMBA_ERR_ARGUMENT, 0, "called from a callback of the same session");
}

JAMBA_API jamba_result jamba_session_mark(jamba_session *session)
{
    if (!session) return JAMBA_ERR_ARGUMENT;
    JMB_TRY(jmb_check_idle(session));
    if (session->position < session->fed)
        return jmb_fail(&session->error, JAMBA_ERR_ARGUMENT, 0, "%u tokens are pending: evaluate them before a mark",
            session->fed - session->position);
    if (session->position && !session->logit_rows)
        return jmb_fail(&session->error, JAMBA_ERR_ARGUMENT, 0,
            "a mark keeps the logits, which the saved state left out: evaluate a token first");
    if (!session->mark_room)
        return jmb_fail(&session->error, JAMBA_ERR_ARGUMENT, 0, "the session was created without room for marks");
    jmb_put_mark(session);
    return JAMBA_OK;
}

JAMBA_API jamba_result jamba_session_rewind(jamba_session *session, int32_t position, int32_t *replay)
{
    uint32_t fed;
    if (!session) return JAMBA_ERR_ARGUMENT;
    JMB_TRY(jmb_check_idle(session));
    if (position < 0 || (uint32_t)position > session->fed)
        return jmb_fail(&session->error, JAMBA_ERR_ARGUMENT, 0, "position %d is outside the %u tokens fed", position,
            session->fed);
    fed = session->fed;
    JMB_TRY(jmb_rewind(session, (uint32_t)position));
    jmb_cut_turns(session, (uint32_t)position, fed);
    if (replay) *replay = (int32_t)(session->fed - session->position);
    return JAMBA_OK;
}

JAMBA_API size_t jamba_session_save(const jamba_session *session, void *buffer, size_t capacity)
{
    return jamba_session_save_as(session, NULL, buffer, capacity);
}

static bool jmb_form_known(jamba_form form)
{
    return form == JAMBA_EXACT || form == JAMBA_F16 || form == JAMBA_Q8;
}

JAMBA_API size_t jamba_session_save_as(
    const jamba_session *session, const jamba_save_params *params, void *buffer, size_t capacity)
{
    jamba_save_params standard;
    jmb_saved h;
    memset(&standard, 0, sizeof standard);
    if (!params) params = &standard;
    if (!session || session->busy || jmb_span_in(session)) return 0;
    if (!jmb_form_known(params->state) || !jmb_form_known(params->kv)) return 0;
    h = jmb_saved_of(session, params);
    if (h.size > SIZE_MAX) return 0;
    if (buffer && capacity >= h.size && !jmb_save(session, &h, (uint8_t *)buffer)) return 0;
    return (size_t)h.size;
}

JAMBA_API jamba_result jamba_session_restore(jamba_session *session, const void *buffer, size_t size)
{
    return jamba_session_load(session, jamba_from_memory(buffer, size));
}

JAMBA_API jamba_result jamba_session_load(jamba_session *session, jamba_source source)
{
    jamba_result result;
    if (!session) return JAMBA_ERR_ARGUMENT;
    JMB_TRY(jmb_check_idle(session));
    session->busy++; /* while callbacks read */
    result = jmb_restore_source(session, &source);
    session->busy--;
    return result;
}

JAMBA_API jamba_result jamba_state_describe(
    const void *buffer, size_t size, jamba_state_info *out, jamba_error *error)
{
    jmb_saved h;
    if (!buffer || !out) return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "buffer and out must not be NULL");
    memset(out, 0, sizeof *out);
    JMB_TRY(jmb_read_saved(&h, (const uint8_t *)buffer, size, error));
    JMB_TRY_HASH(jmb_check_saved_hash(&h, (const uint8_t *)buffer, error));
    out->version = h.version;
    memcpy(out->identity, h.identity, 32);
    out->position = (int32_t)h.position;
    out->pending = (int32_t)h.pending;
    out->marks = (int32_t)h.marks;
    out->state = (jamba_form)h.state;
    out->kv_type = (jamba_kv_type)h.kv;
    out->tokens = h.unknown == 0;
    out->logits = (h.flags & JMB_SAVED_LOGITS) != 0;
    out->has_sampler = (h.flags & JMB_SAVED_SAMPLER) != 0;
    if (out->has_sampler) out->sampler = jmb_sampler_of(&h);
    memcpy(out->adapter_hash, h.adapter_hash, sizeof out->adapter_hash);
    memcpy(out->adapter_scale, h.adapter_scale, sizeof out->adapter_scale);
    while (out->adapters < JAMBA_ADAPTERS_MAX && h.adapter_hash[out->adapters]) out->adapters++;
    return JAMBA_OK;
}

JAMBA_API jamba_result jamba_session_set_adapters(
    jamba_session *session, jamba_adapter *const *adapters, const float *scales, size_t count)
{
    jmb_adapters given;
    if (!session) return JAMBA_ERR_ARGUMENT;
    JMB_TRY(jmb_check_idle(session));
    JMB_TRY(jmb_check_given(session, adapters, scales, count));
    if (jmb_span_in(session))
        return jmb_fail(&session->error, JAMBA_ERR_ARGUMENT, 0, "in the middle of a token: step on before it changes");
    if (session->own.kept > session->position && !jmb_pages_fit(session, session->position, session->fed))
        return jmb_fail_pages(session, session->fed - session->position, session->position);
    given = jmb_adapters_of(adapters, scales, count);
    JMB_TRY(jmb_set_adapters(session, &given, &session->error));
    if (session->own.kept > session->position) jmb_forget_kept(session, session->position);
    session->adapted = session->position;
    return JAMBA_OK;
}

/* Whether these tokens can be queued. */
static jamba_result jmb_check_tokens(jamba_session *s, const int32_t *tokens, size_t count)
{
    uint32_t vocab = s->model->metadata.header.vocab;
    size_t i;
    JMB_TRY(jmb_check_idle(s));
    if (!tokens && count) return jmb_fail(&s->error, JAMBA_ERR_ARGUMENT, 0, "tokens must not be NULL");
    JMB_TRY(jmb_check_room(s, count));
    for (i = 0; i < count; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= vocab)
            return jmb_fail(
                &s->error, JAMBA_ERR_ARGUMENT, 0, "token %d is outside the vocabulary of %u", tokens[i], vocab);
    return JAMBA_OK;
}

static void jmb_enqueue(jamba_session *s, const int32_t *tokens, size_t count)
{
    if (count) memcpy(s->tokens + s->fed, tokens, count * sizeof *tokens);
    jmb_queue_up(s, count);
}

JAMBA_API jamba_result jamba_feed(jamba_session *session, const int32_t *tokens, size_t count)
{
    if (!session) return JAMBA_ERR_ARGUMENT;
    JMB_TRY(jmb_check_tokens(session, tokens, count));
    jmb_enqueue(session, tokens, count);
    return JAMBA_OK;
}

JAMBA_API jamba_result jamba_step(jamba_session *session, uint64_t budget_us)
{
    bool go_on;
    if (!session) return JAMBA_ERR_ARGUMENT;
    JMB_TRY(jmb_check_idle(session));
    return jmb_step(&session, 1, budget_us, &go_on);
}

JAMBA_API jamba_result jamba_eval(jamba_session *session, const int32_t *tokens, size_t count)
{
    JMB_TRY(jamba_feed(session, tokens, count));
    return jamba_step(session, 0);
}

/* Marks the sessions of a batch as busy; *held tells how many. A session that is busy already is there
 * twice, or calls from a callback. */
static jamba_result jmb_batch_hold(
    jamba_session *const *sessions, const int32_t *tokens, size_t count, size_t *held, jamba_error *error)
{
    for (*held = 0; *held < count; ++*held) {
        jamba_session *s = sessions[*held];
        jamba_result result = JAMBA_OK;
        if (!s || s->model != sessions[0]->model)
            return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "session %z of the batch is NULL or of another model", *held);
        if (s->busy)
            return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "session %z is in the batch twice, or calls back", *held);
        if (tokens) result = jmb_check_tokens(s, tokens + *held, 1);
        if (result != JAMBA_OK) {
            jamba_error why = s->error;
            return jmb_fail(error, result, 0, "session %z of the batch: %s", *held, why.message);
        }
        s->busy++;
    }
    return JAMBA_OK;
}

/* Queues a token for each where there are any, and works on the queues. */
static jamba_result jmb_batch(
    jamba_session *const *sessions, const int32_t *tokens, size_t count, uint64_t budget_us)
{
    jamba_result result;
    size_t held, i;
    bool go_on;
    if (!sessions || !count || !sessions[0]) return JAMBA_ERR_ARGUMENT;
    result = jmb_batch_hold(sessions, tokens, count, &held, &sessions[0]->error);
    if (result == JAMBA_OK) {
        for (i = 0; tokens && i < count; i++) jmb_enqueue(sessions[i], tokens + i, 1);
        result = jmb_step(sessions, count, budget_us, &go_on);
    }
    for (i = 0; i < held; i++) sessions[i]->busy--;
    return result;
}

JAMBA_API jamba_result jamba_step_batch(jamba_session *const *sessions, size_t count, uint64_t budget_us)
{
    return jmb_batch(sessions, NULL, count, budget_us);
}

JAMBA_API jamba_result jamba_eval_batch(jamba_session *const *sessions, const int32_t *tokens, size_t count)
{
    return jmb_batch(sessions, tokens, count, 0);
}

JAMBA_API const float *jamba_logits(const jamba_session *session)
{
    if (!session || session->position == 0 || session->position < session->fed) return NULL;
    if (session->logit_rows == 0) return NULL;
    return session->logits + (session->logit_rows - 1) * jmb_pad16(session->model->metadata.header.vocab);
}

JAMBA_API int32_t jamba_sample(jamba_session *session, jamba_sampler *sampler)
{
    jamba_sampler greedy;
    const float *logits = jamba_logits(session);
    int32_t token;
    memset(&greedy, 0, sizeof greedy);
    if (!session) return JAMBA_ERR_ARGUMENT;
    JMB_TRY(jmb_check_idle(session));
    if (!logits) return jmb_fail(&session->error, JAMBA_ERR_ARGUMENT, 0, "there are no logits: evaluate a token first");
    if (!sampler) sampler = &greedy;
    if (!jmb_sampler_valid(sampler))
        return jmb_fail(&session->error, JAMBA_ERR_ARGUMENT, 0, "a sampler field is out of range");
    session->busy++;
    token = jmb_sample(session, sampler, logits);
    session->busy--;
    return token;
}

JAMBA_API jamba_result jamba_encode(const jamba_model *model, const char *text, size_t length, unsigned flags,
    int32_t *tokens, size_t capacity, size_t *count, jamba_error *error)
{
    jmb_piece piece;
    uint32_t bos;
    if (!model || !count || (!text && length) || (!tokens && capacity))
        return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "model, text, tokens and count must not be NULL");
    bos = model->metadata.header.bos;
    piece.text = text;
    piece.length = length;
    piece.special = (flags & JAMBA_TEXT_SPECIAL) != 0;
    return jmb_encode(&model->tokenizer, &model->heap.allocator, &piece, 1,
        (flags & JAMBA_TEXT_BOS) && bos != JMB_NO_TOKEN ? (int32_t)bos : -1, tokens, capacity, count, error);
}

JAMBA_API jamba_result jamba_decode(const jamba_model *model, const int32_t *tokens, size_t count, unsigned flags,
    char *text, size_t capacity, size_t *length, jamba_error *error)
{
    if (!model || !length || (!tokens && count) || (!text && capacity))
        return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "model, tokens, text and length must not be NULL");
    return jmb_decode(&model->tokenizer, tokens, count, flags, text, capacity, length, error);
}

JAMBA_API size_t jamba_decode_next(
    const jamba_model *model, jamba_text_stream *stream, int32_t token, unsigned flags, char *text)
{
    return model && stream && text ? jmb_decode_next(&model->tokenizer, stream, token, flags, text) : 0;
}

JAMBA_API const char *jamba_token_text(const jamba_model *model, int32_t token, size_t *length)
{
    size_t ignored;
    return model ? jmb_token_bytes(&model->tokenizer, token, length ? length : &ignored) : NULL;
}

JAMBA_API int32_t jamba_token_find(const jamba_model *model, const char *text)
{
    return model && text ? jmb_token_lookup(&model->tokenizer, text, strlen(text)) : -1;
}

JAMBA_API bool jamba_token_is_end(const jamba_model *model, int32_t token)
{
    uint32_t i;
    if (!model || token < 0) return false;
    for (i = 0; i < model->metadata.header.eos_count; i++)
        if (jmb_eos(&model->metadata.header, i) == (uint32_t)token) return true;
    return false;
}

JAMBA_API jamba_result jamba_chat_encode(const jamba_model *model, const jamba_message *messages, size_t count,
    unsigned flags, int32_t *tokens, size_t capacity, size_t *needed, jamba_error *error)
{
    if (!model || !needed || (!messages && count) || (!tokens && capacity))
        return jmb_fail(error, JAMBA_ERR_ARGUMENT, 0, "model, messages, tokens and needed must not be NULL");
    return jmb_chat_encode(&model->metadata, &model->tokenizer, &model->heap.allocator, messages, count, flags, tokens,
        capacity, needed, error);
}

JAMBA_API jamba_result jamba_say(jamba_session *session, const char *role, const char *content)
{
    if (!session) return JAMBA_ERR_ARGUMENT;
    JMB_TRY(jmb_check_idle(session));
    return jmb_say(session, role, content);
}

JAMBA_API jamba_result jamba_reply(
    jamba_session *session, const jamba_reply_params *params, const char **text, size_t *length)
{
    jamba_reply_params standard;
    jamba_result result;
    memset(&standard, 0, sizeof standard);
    if (!session) return JAMBA_ERR_ARGUMENT;
    JMB_TRY(jmb_check_idle(session));
    if (!text || !length)
        return jmb_fail(&session->error, JAMBA_ERR_ARGUMENT, 0, "nowhere to put the text: text or length is NULL");
    *text = session->reply.text;
    *length = 0;
    if (!params) params = &standard;
    JMB_TRY(jmb_check_reply(session, params));
    result = jmb_reply_run(session, params);
    *length = session->reply.given;
    return result;
}

JAMBA_API size_t jamba_turns(const jamba_session *session, jamba_turn *out, size_t capacity)
{
    size_t count = session ? jmb_list_turns(session, NULL, 0) : 0;
    if (count && out) jmb_list_turns(session, out, count > capacity ? count - capacity : 0);
    return count;
}

JAMBA_API jamba_result jamba_session_restart(jamba_session *session, int32_t turns, int32_t *replay)
{
    if (!session) return JAMBA_ERR_ARGUMENT;
    JMB_TRY(jmb_check_idle(session));
    if (turns < 1) return jmb_fail(&session->error, JAMBA_ERR_ARGUMENT, 0, "turns is %d, below 1", turns);
    JMB_TRY(jmb_restart(session, turns));
    if (replay) *replay = (int32_t)(session->fed - session->position);
    return JAMBA_OK;
}

JAMBA_API size_t jamba_top(const jamba_session *session, jamba_candidate *out, size_t count)
{
    const float *logits = jamba_logits(session);
    jmb_fp_state saved;
    if (!logits || !out || session->busy) return 0;
    saved = jmb_fp_enter();
    count = jmb_top(session, logits, out, count);
    jmb_fp_leave(saved);
    return count;
}

JAMBA_API jamba_result jamba_score(jamba_session *session, const int32_t *tokens, size_t count, float *logprobs)
{
    if (!session) return JAMBA_ERR_ARGUMENT;
    JMB_TRY(jmb_check_tokens(session, tokens, count));
    if (!logprobs && count) return jmb_fail(&session->error, JAMBA_ERR_ARGUMENT, 0, "logprobs must not be NULL");
    JMB_TRY(jmb_check_logits(session));
    return jmb_score(session, tokens, count, logprobs);
}

JAMBA_API jamba_result jamba_choose(jamba_session *session, const char *const *options, size_t count,
    jamba_sampler *sampler, float *logprobs, int32_t *choice)
{
    jmb_choice c;
    jamba_result result;
    if (!session) return JAMBA_ERR_ARGUMENT;
    JMB_TRY(jmb_check_idle(session));
    if (!options || !choice || count == 0 || count > 65536)
        return jmb_fail(&session->error, JAMBA_ERR_ARGUMENT, 0, "a choice is among 1 to 65536 options");
    if (sampler && !jmb_sampler_valid(sampler))
        return jmb_fail(&session->error, JAMBA_ERR_ARGUMENT, 0, "a sampler field is out of range");
    JMB_TRY(jmb_check_logits(session));
    memset(&c, 0, sizeof c);
    c.session = session;
    c.heap.allocator = session->allocator;
    result = jmb_choose(&c, options, count, sampler, logprobs, choice);
    jmb_choice_free(&c);
    return result;
}

/* Short names of >>lanes and >>kernels, which must not reach the including file. */
#undef v16
#undef vi16
#undef v_set1
#undef v_load
#undef v_store
#undef v_load_le
#undef v_load_f16
#undef v_pair_f16
#undef v_pair_bf16
#undef v_add
#undef v_sub
#undef v_mul
#undef v_div
#undef v_sqrt
#undef v_max
#undef v_min
#undef v_fma
#undef v_fnma
#undef v_round
#undef v_pow2
#undef v_ldexp
#undef v_raise
#undef v_swap
#undef v_select_gt
#undef v_store_i8
#undef v_load_i8
#undef v_prefetch
#undef vb64
#undef vb_load
#undef vb_levels
#undef vi_start
#undef vi_dot
#undef vi_float
#undef v_load_part
#undef v_load_part_le
#undef v_store_part
#undef v_sum
#undef v_highest
#undef v_exp
#undef v_silu
#undef jmb_rows_in
#undef jmb_panels_in
#undef jmb_part_in
#undef jmb_lanes_of
#undef jmb_scan_in
#undef jmb_scan2_in
#undef jmb_queries_of
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#if defined(JMB_SSE_MATH) /* gcc cannot call the static functions above from code for the x87 */
#pragma GCC target("sse2,fpmath=sse")
#endif
#elif defined(__clang__) && !defined(__wasm__)
#pragma float_control(pop)
#endif
#endif /* JMB_PASS */
#endif /* JAMBA_IMPLEMENTATION */

/* MIT License
 *
 * Copyright (c) 2026 the jamba.h authors
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
 * associated documentation files (the "Software"), to deal in the Software without restriction,
 * including without limitation the rights to use, copy, modify, merge, publish, distribute,
 * sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
 * furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all copies or
 * substantial portions of the Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
 * NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
 * NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
 * DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT
 * OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 */
