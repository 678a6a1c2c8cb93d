build2/kernels/evaluate.o: kernels/evaluate.c kernels/job.h \
 kernels/model.h kernels/ops.h kernels/dtx_engine.h scheduler/base/buf.h \
 scheduler/base/err.h
kernels/job.h:
kernels/model.h:
kernels/ops.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
