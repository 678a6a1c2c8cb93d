/*
 * A pool of threads that share the tasks of one call.  pool_run returns when all tasks are done; the caller
 * works too. Which thread runs a task varies; what it computes must not.
 */
#ifndef DTX_CPU_POOL_H
#define DTX_CPU_POOL_H

struct pool;

typedef void pool_task(void *arg, int task, int thread); /* thread: 0 .. pool_threads - 1 */

struct pool *pool_new(int threads); /* NULL: out of memory or threads */
void pool_free(struct pool *p);
int pool_threads(const struct pool *p);
void pool_run(struct pool *p, int tasks, pool_task *fn, void *arg);

#endif
