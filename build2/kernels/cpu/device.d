build2/kernels/cpu/device.o: kernels/cpu/device.c kernels/cpu/blas.h \
 scheduler/base/err.h kernels/cpu/cpu.h kernels/cpu/pool.h kernels/ops.h \
 kernels/dtx_engine.h scheduler/base/buf.h
kernels/cpu/blas.h:
scheduler/base/err.h:
kernels/cpu/cpu.h:
kernels/cpu/pool.h:
kernels/ops.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
