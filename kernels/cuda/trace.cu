/*
 * Where the time goes: with DTX_CUDA_TRACE=1 in the environment, device events around each traced scope, and a table on
 * stderr when the device closes.  Scopes may nest (a linear op and its parts); events cost a few microseconds each, so
 * small kernels look longer than they are.
 */
#include "kernels/cuda/cuda.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_NAMES = 256, MAX_OPEN = 8192 };

struct trace {
    struct {
        char name[56];
        double ms;
        long calls;
    } row[MAX_NAMES];
    int rows, pending, made;
    struct {
        int row;
        cudaEvent_t begin, end;
    } span[MAX_OPEN];
};

trace *trace_open()
{
    const char *on = getenv("DTX_CUDA_TRACE");
    return on && *on && strcmp(on, "0") != 0 ? (trace *)calloc(1, sizeof(trace)) : NULL;
}

int trace_begin(op_dev *d, const char *format, ...)
{
    trace *t = d->tracing;
    char name[56];
    va_list ap;
    int row = 0;

    va_start(ap, format);
    vsnprintf(name, sizeof(name), format, ap);
    va_end(ap);
    while (row < t->rows && strcmp(t->row[row].name, name) != 0)
        row++;
    if (row == MAX_NAMES)
        return -1;
    if (row == t->rows)
        memcpy(t->row[t->rows++].name, name, sizeof(name));
    if (t->pending == MAX_OPEN)
        trace_collect(d);
    int i = t->pending++;
    if (i == t->made) {
        t->made++;
        if (cudaEventCreate(&t->span[i].begin) || cudaEventCreate(&t->span[i].end))
            return t->pending--, t->made--, -1;
    }
    t->span[i].row = row;
    cudaEventRecord(t->span[i].begin, d->stream);
    cudaEventRecord(t->span[i].end, d->stream); /* so that an unfinished scope can be collected */
    return i;
}

void trace_end(op_dev *d, int span)
{
    if (span >= 0 && span < d->tracing->pending)
        cudaEventRecord(d->tracing->span[span].end, d->stream);
}

void trace_collect(op_dev *d)
{
    trace *t = d->tracing;
    cudaStreamSynchronize(d->stream);
    for (int i = 0; i < t->pending; i++) {
        float ms = 0;
        if (cudaEventElapsedTime(&ms, t->span[i].begin, t->span[i].end) == cudaSuccess) {
            t->row[t->span[i].row].ms += ms;
            t->row[t->span[i].row].calls++;
        }
    }
    t->pending = 0;
}

void trace_close(op_dev *d)
{
    trace *t = d->tracing;
    if (!t)
        return;
    trace_collect(d);
    fprintf(stderr, "%-44s %8s %10s %9s\n", "scope", "calls", "total ms", "mean us");
    for (int i = 0; i < t->rows; i++)
        fprintf(stderr, "%-44s %8ld %10.2f %9.1f\n", t->row[i].name, t->row[i].calls, t->row[i].ms,
                t->row[i].calls ? 1e3 * t->row[i].ms / (double)t->row[i].calls : 0.);
    for (int i = 0; i < t->made; i++) {
        cudaEventDestroy(t->span[i].begin);
        cudaEventDestroy(t->span[i].end);
    }
    free(t);
    d->tracing = NULL;
}
