build2/kernels/cpu/linear.o: kernels/cpu/linear.c kernels/cpu/cpu.h \
 kernels/cpu/pool.h kernels/ops.h kernels/dtx_engine.h \
 scheduler/base/buf.h scheduler/base/err.h kernels/cpu/linear.h \
 kernels/rng.h kernels/cpu/vec.h
kernels/cpu/cpu.h:
kernels/cpu/pool.h:
kernels/ops.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
kernels/cpu/linear.h:
kernels/rng.h:
kernels/cpu/vec.h:
