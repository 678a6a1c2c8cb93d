build2/kernels/cpu/elementwise.o: kernels/cpu/elementwise.c \
 kernels/cpu/cpu.h kernels/cpu/pool.h kernels/ops.h kernels/dtx_engine.h \
 scheduler/base/buf.h scheduler/base/err.h kernels/cpu/vec.h
kernels/cpu/cpu.h:
kernels/cpu/pool.h:
kernels/ops.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
kernels/cpu/vec.h:
