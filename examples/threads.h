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

#if (defined(__unix__) || defined(__APPLE__)) && defined(__GCC_ATOMIC_LLONG_LOCK_FREE) && \
    __GCC_ATOMIC_LLONG_LOCK_FREE == 2 && (!defined(__EMSCRIPTEN__) || defined(__EMSCRIPTEN_PTHREADS__))
#define THREADS_POSIX 1
#include <pthread.h>
#include <signal.h>
#include <unistd.h>
#else
#define THREADS_POSIX 0
#endif

/* A thread looks this often for work before it sleeps: some tens of microseconds, more than the gap
 * between two runs while a model works. Pointless with more threads than processors. */
enum { THREADS_SPINS = 2000, THREADS_MAX = 256 };

typedef struct threads_pool threads_pool;

#if THREADS_POSIX

struct threads_pool {
    jamba_executor executor;
    jamba_task_fn task;
    void *ctx;
    int spins, started; /* started: threads to join */
    /* Atomic: number of the run in the upper half, tasks nobody has taken yet in the lower. Whoever
     * takes one keeps that run from ending, so task and ctx belong to it; a latecomer sees 0 or another
     * number, and takes nothing from the wrong run. */
    uint64_t ticket __attribute__((aligned(8))); /* 32-bit x86 would be content with 4 */
    int unfinished;    /* atomic: tasks of this run that are not done */
    int sleepers;      /* atomic: threads that wait for `wake` */
    int caller_sleeps; /* atomic: the caller of run() waits for `done` */
    int quit;          /* atomic */
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

static inline uint32_t threads_left(const threads_pool *pool)
{
    return (uint32_t)__atomic_load_n(&pool->ticket, __ATOMIC_SEQ_CST);
}

/* The next task of the run, or -1. */
static inline int threads_take(threads_pool *pool)
{
    uint64_t ticket = __atomic_load_n(&pool->ticket, __ATOMIC_ACQUIRE);
    while ((uint32_t)ticket != 0)
        if (__atomic_compare_exchange_n(&pool->ticket, &ticket, ticket - 1, true, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            return (int)((uint32_t)ticket - 1);
    return -1;
}

/* Does tasks until none is left to take. Whoever finishes the last one wakes the caller. */
static inline void threads_work(threads_pool *pool)
{
    for (int i; (i = threads_take(pool)) >= 0;) {
        pool->task(pool->ctx, i);
        if (__atomic_sub_fetch(&pool->unfinished, 1, __ATOMIC_SEQ_CST) != 0) continue;
        if (!__atomic_load_n(&pool->caller_sleeps, __ATOMIC_SEQ_CST)) continue;
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_signal(&pool->done);
        pthread_mutex_unlock(&pool->mutex);
    }
}

static inline bool threads_wanted(const threads_pool *pool)
{
    return threads_left(pool) != 0 || __atomic_load_n(&pool->quit, __ATOMIC_SEQ_CST);
}

static inline void threads_await_work(threads_pool *pool)
{
    for (int i = 0; i < pool->spins; i++) {
        if (threads_wanted(pool)) return;
        threads_pause();
    }
    pthread_mutex_lock(&pool->mutex);
    __atomic_add_fetch(&pool->sleepers, 1, __ATOMIC_SEQ_CST);
    while (!threads_wanted(pool)) pthread_cond_wait(&pool->wake, &pool->mutex);
    __atomic_sub_fetch(&pool->sleepers, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&pool->mutex);
}

static inline void *threads_main(void *user)
{
    threads_pool *pool = (threads_pool *)user;
    while (!__atomic_load_n(&pool->quit, __ATOMIC_SEQ_CST)) {
        threads_work(pool);
        threads_await_work(pool);
    }
    return NULL;
}

static inline void threads_wake(threads_pool *pool)
{
    if (__atomic_load_n(&pool->sleepers, __ATOMIC_SEQ_CST) == 0) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

static inline void threads_await_done(threads_pool *pool)
{
    for (int i = 0; i < pool->spins; i++) {
        if (__atomic_load_n(&pool->unfinished, __ATOMIC_SEQ_CST) == 0) return;
        threads_pause();
    }
    pthread_mutex_lock(&pool->mutex);
    __atomic_store_n(&pool->caller_sleeps, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&pool->unfinished, __ATOMIC_SEQ_CST) != 0) pthread_cond_wait(&pool->done, &pool->mutex);
    __atomic_store_n(&pool->caller_sleeps, 0, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&pool->mutex);
}

/* Tasks that wait for each other are fine up to `width` of them: each holds a thread, and the others
 * come for the rest. */
static inline void threads_run(void *user, int count, jamba_task_fn task, void *ctx)
{
    threads_pool *pool = (threads_pool *)user;
    uint64_t run = (__atomic_load_n(&pool->ticket, __ATOMIC_RELAXED) >> 32) + 1;
    if (count < 1) return;
    pool->task = task;
    pool->ctx = ctx;
    __atomic_store_n(&pool->unfinished, count, __ATOMIC_RELAXED);
    __atomic_store_n(&pool->ticket, run << 32 | (uint32_t)count, __ATOMIC_SEQ_CST);
    if (count > 1) threads_wake(pool);
    threads_work(pool);
    threads_await_done(pool);
}

/* NULL is allowed. */
static inline void threads_stop(threads_pool *pool)
{
    if (!pool) return;
    __atomic_store_n(&pool->quit, 1, __ATOMIC_SEQ_CST);
    threads_wake(pool);
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
