/* threads.h - a small thread pool for jamba_executor, for programs that have none of their own
 *
 *     threads_pool *pool = threads_start(4);       NULL when the threads cannot be had
 *     params.executor = &pool->executor;           before jamba_session_create(), which copies it
 *     ...
 *     threads_stop(pool);                          after jamba_session_free()
 *
 * Include it after jamba.h and link with -pthread. One run() at a time: sessions that work at the same
 * moment need a pool each. Without POSIX threads there is no pool, and everything runs serially.
 */
#ifndef JAMBA_THREADS_H
#define JAMBA_THREADS_H

#include <stdlib.h>

#if (defined(__unix__) || defined(__APPLE__)) && (defined(__GNUC__) || defined(__clang__))
#define THREADS_POSIX 1
#include <pthread.h>
#include <signal.h>
#include <unistd.h>
#else
#define THREADS_POSIX 0
#endif

/* Looks at a flag this often before sleeping: some tens of microseconds, the usual gap between two
 * runs while a model works. Pointless with more threads than cores. */
enum { THREADS_SPINS = 4000, THREADS_MAX = 256 };

typedef struct threads_pool threads_pool;

#if THREADS_POSIX

struct threads_pool {
    jamba_executor executor;
    jamba_task_fn task;
    void *ctx;
    int count;
    int width, spins, started; /* started: threads to join */
    int next_slot;  /* atomic: hands each thread its slot, 1 .. width - 1; the caller of run() has 0 */
    int busy;       /* atomic: threads still at work in this round */
    unsigned round; /* atomic: one more for every run() */
    int quit;       /* atomic */
    pthread_mutex_t mutex;
    pthread_cond_t wake, done;
    pthread_t threads[THREADS_MAX];
};

static inline void threads_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Task i belongs to slot i % width, so that up to `width` tasks are live at once and may wait for
 * each other. */
static inline void threads_work(const threads_pool *pool, int slot)
{
    for (int i = slot; i < pool->count; i += pool->width) pool->task(pool->ctx, i);
}

static inline void threads_await_round(threads_pool *pool, unsigned seen)
{
    for (int i = 0; i < pool->spins; i++) {
        if (__atomic_load_n(&pool->round, __ATOMIC_ACQUIRE) != seen) return;
        threads_pause();
    }
    pthread_mutex_lock(&pool->mutex);
    while (__atomic_load_n(&pool->round, __ATOMIC_ACQUIRE) == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

static inline void threads_await_done(threads_pool *pool)
{
    for (int i = 0; i < pool->spins; i++) {
        if (__atomic_load_n(&pool->busy, __ATOMIC_ACQUIRE) == 0) return;
        threads_pause();
    }
    pthread_mutex_lock(&pool->mutex);
    while (__atomic_load_n(&pool->busy, __ATOMIC_ACQUIRE) != 0) pthread_cond_wait(&pool->done, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

static inline void *threads_main(void *user)
{
    threads_pool *pool = (threads_pool *)user;
    int slot = __atomic_add_fetch(&pool->next_slot, 1, __ATOMIC_RELAXED);
    for (unsigned round = 0;; round++) {
        threads_await_round(pool, round);
        if (__atomic_load_n(&pool->quit, __ATOMIC_ACQUIRE)) return NULL;
        threads_work(pool, slot);
        if (__atomic_sub_fetch(&pool->busy, 1, __ATOMIC_ACQ_REL) != 0) continue;
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_signal(&pool->done);
        pthread_mutex_unlock(&pool->mutex);
    }
}

static inline void threads_next_round(threads_pool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    __atomic_add_fetch(&pool->round, 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

static inline void threads_run(void *user, int count, jamba_task_fn task, void *ctx)
{
    threads_pool *pool = (threads_pool *)user;
    pool->task = task;
    pool->ctx = ctx;
    pool->count = count;
    if (count <= 1) {
        threads_work(pool, 0);
        return;
    }
    __atomic_store_n(&pool->busy, pool->width - 1, __ATOMIC_RELAXED);
    threads_next_round(pool);
    threads_work(pool, 0);
    threads_await_done(pool);
}

/* NULL is allowed. */
static inline void threads_stop(threads_pool *pool)
{
    if (!pool) return;
    __atomic_store_n(&pool->quit, 1, __ATOMIC_RELEASE);
    threads_next_round(pool);
    for (int i = 0; i < pool->started; i++) pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    free(pool);
}

/* Processors that are online. */
static inline int threads_available(void)
{
#ifdef _SC_NPROCESSORS_ONLN
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count < 1 ? 1 : count > THREADS_MAX ? THREADS_MAX : (int)count;
#else
    return 1;
#endif
}

/* `width` threads, the caller's among them. NULL when width is not in [1, THREADS_MAX] or they cannot
 * be had. */
static inline threads_pool *threads_start(int width)
{
    threads_pool *pool;
    sigset_t all, before;
    if (width < 1 || width > THREADS_MAX || !(pool = (threads_pool *)calloc(1, sizeof *pool))) return NULL;
    pool->width = width;
    pool->executor.run = threads_run;
    pool->executor.user = pool;
    pool->executor.width = width;
    pool->executor.concurrent = true;
    pool->spins = width <= threads_available() ? THREADS_SPINS : 0;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->done, NULL);
    /* Signals stay with the program's own threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool->started < width - 1 &&
           pthread_create(&pool->threads[pool->started], NULL, threads_main, pool) == 0)
        pool->started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pool->started == width - 1) return pool;
    threads_stop(pool);
    return NULL;
}

#else

struct threads_pool {
    jamba_executor executor;
};

static inline int threads_available(void)
{
    return 1;
}

static inline threads_pool *threads_start(int width)
{
    (void)width;
    return NULL;
}

static inline void threads_stop(threads_pool *pool)
{
    (void)pool;
}

#endif

/* Makes sessions created with `params` work on `width` threads: OpenMP's when compiled with it, else
 * those of a new pool, to be stopped after the sessions. */
static inline bool threads_attach(threads_pool **pool, int width, jamba_session_params *params)
{
    *pool = NULL;
    params->threads = width;
#if !defined(_OPENMP)
    if (width == 1) return true;
    *pool = threads_start(width);
    if (!*pool) return false;
    params->executor = &(*pool)->executor;
#endif
    return true;
}

#endif /* JAMBA_THREADS_H */
