/*
 * A call is published under the mutex by raising `call`; a worker that sees a new call joins it (active++),
 * takes tasks from the atomic counter until none is left, and leaves.  The caller takes tasks too, then waits
 * until active is 0 and withdraws the call: a worker that wakes too late finds fn NULL and goes back to
 * sleep.
 *
 * Operations follow each other within microseconds, so a worker that ran out of work looks at `call` for a
 * short while (SPIN rounds, some 30 us) before it sleeps.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "kernels/cpu/pool.h"

enum { SPIN = 1000 };

struct worker {
    struct pool *pool;
    pthread_t thread;
    int index;
};

struct pool {
    int threads; /* with the caller */
    int started;
    struct worker *workers; /* threads - 1 */
    pthread_mutex_t lock;
    pthread_cond_t wake, idle;
    _Atomic uint64_t call; /* written under lock */
    _Atomic int next;      /* the next task of this call */
    int sleepers, active;  /* under lock */
    bool quit;             /* under lock */
    pool_task *fn;         /* under lock; constant while a call runs, as are arg and tasks */
    void *arg;
    int tasks;
};

static inline void spin_pause(void)
{
    __builtin_ia32_pause();
}

static void take_tasks(struct pool *p, pool_task *fn, void *arg, int tasks, int thread)
{
    for (;;) {
        int t = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed);
        if (t >= tasks)
            return;
        fn(arg, t, thread);
    }
}

/* With the lock held: wait for a call newer than seen. */
static void wait_call(struct pool *p, uint64_t seen)
{
    if (!p->quit && atomic_load(&p->call) == seen) {
        pthread_mutex_unlock(&p->lock);
        for (int i = 0; i < SPIN && atomic_load(&p->call) == seen; i++)
            spin_pause();
        pthread_mutex_lock(&p->lock);
    }
    while (!p->quit && atomic_load(&p->call) == seen) {
        p->sleepers++;
        pthread_cond_wait(&p->wake, &p->lock);
        p->sleepers--;
    }
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct pool *p = w->pool;
    uint64_t seen = 0;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        wait_call(p, seen);
        if (p->quit)
            break;
        seen = atomic_load(&p->call);
        if (!p->fn)
            continue;
        pool_task *fn = p->fn;
        void *fn_arg = p->arg;
        int tasks = p->tasks;
        p->active++;
        pthread_mutex_unlock(&p->lock);
        take_tasks(p, fn, fn_arg, tasks, w->index);
        pthread_mutex_lock(&p->lock);
        if (--p->active == 0)
            pthread_cond_signal(&p->idle);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

void pool_run(struct pool *p, int tasks, pool_task *fn, void *arg)
{
    if (p->threads == 1 || tasks <= 1) {
        for (int t = 0; t < tasks; t++)
            fn(arg, t, 0);
        return;
    }
    pthread_mutex_lock(&p->lock);
    p->fn = fn;
    p->arg = arg;
    p->tasks = tasks;
    atomic_store(&p->next, 0);
    atomic_fetch_add(&p->call, 1);
    if (p->sleepers)
        pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    take_tasks(p, fn, arg, tasks, 0);
    pthread_mutex_lock(&p->lock);
    while (p->active)
        pthread_cond_wait(&p->idle, &p->lock);
    p->fn = NULL;
    pthread_mutex_unlock(&p->lock);
}

int pool_threads(const struct pool *p)
{
    return p->threads;
}

struct pool *pool_new(int threads)
{
    struct pool *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->threads = threads;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->idle, NULL);
    p->workers = calloc((size_t)threads, sizeof *p->workers);
    for (int i = 0; p->workers && i < threads - 1; i++) {
        p->workers[i] = (struct worker){.pool = p, .index = i + 1};
        if (pthread_create(&p->workers[i].thread, NULL, worker_main, &p->workers[i]) != 0)
            break;
        p->started++;
    }
    if (p->started < threads - 1) {
        pool_free(p);
        return NULL;
    }
    return p;
}

void pool_free(struct pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->quit = true;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->started; i++)
        pthread_join(p->workers[i].thread, NULL);
    pthread_cond_destroy(&p->idle);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p->workers);
    free(p);
}
