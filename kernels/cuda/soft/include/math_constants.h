/* Stands in for CUDA's header. */
#ifndef DTX_SOFT_MATH_CONSTANTS_H
#define DTX_SOFT_MATH_CONSTANTS_H

#include <cmath>

#define CUDART_INF_F INFINITY

#endif
