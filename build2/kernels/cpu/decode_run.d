build2/kernels/cpu/decode_run.o: kernels/cpu/decode_run.c \
 kernels/cpu/cpu.h kernels/cpu/pool.h kernels/ops.h kernels/dtx_engine.h \
 scheduler/base/buf.h scheduler/base/err.h
kernels/cpu/cpu.h:
kernels/cpu/pool.h:
kernels/ops.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
