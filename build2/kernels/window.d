build2/kernels/window.o: kernels/window.c kernels/job.h kernels/model.h \
 kernels/ops.h kernels/dtx_engine.h scheduler/base/buf.h \
 scheduler/base/err.h kernels/rng.h
kernels/job.h:
kernels/model.h:
kernels/ops.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
kernels/rng.h:
