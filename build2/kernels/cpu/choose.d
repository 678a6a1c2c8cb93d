build2/kernels/cpu/choose.o: kernels/cpu/choose.c kernels/choice.h \
 kernels/rng.h kernels/cpu/cpu.h kernels/cpu/pool.h kernels/ops.h \
 kernels/dtx_engine.h scheduler/base/buf.h scheduler/base/err.h
kernels/choice.h:
kernels/rng.h:
kernels/cpu/cpu.h:
kernels/cpu/pool.h:
kernels/ops.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
