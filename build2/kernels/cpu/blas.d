build2/kernels/cpu/blas.o: kernels/cpu/blas.c \
 /usr/include/x86_64-linux-gnu/openblas-pthread/cblas.h \
 /usr/include/x86_64-linux-gnu/openblas-pthread/openblas_config.h \
 kernels/cpu/blas.h scheduler/base/err.h kernels/cpu/cpu.h \
 kernels/cpu/pool.h kernels/ops.h kernels/dtx_engine.h \
 scheduler/base/buf.h
/usr/include/x86_64-linux-gnu/openblas-pthread/cblas.h:
/usr/include/x86_64-linux-gnu/openblas-pthread/openblas_config.h:
kernels/cpu/blas.h:
scheduler/base/err.h:
kernels/cpu/cpu.h:
kernels/cpu/pool.h:
kernels/ops.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
