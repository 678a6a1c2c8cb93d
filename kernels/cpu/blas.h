/*
 * OpenBLAS, loaded at run time: its choice of kernels must be made by us before its constructor runs.  Left
 * alone, Debian 12's version takes processors it does not know (new ones) for a Prescott and is four times
 * slower.
 */
#ifndef DTX_CPU_BLAS_H
#define DTX_CPU_BLAS_H

#include "scheduler/base/err.h"

/* Loads it once per process (later calls do nothing) and sets it to one thread.  OPENBLAS_CORETYPE in the
 * environment wins over our choice. */
int blas_open(struct dtx_err *e);
/* "OpenBLAS 0.3.21 ..., kernel SkylakeX". */
void blas_describe(char *out, size_t n);

#endif
