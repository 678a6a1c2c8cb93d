build2/kernels/plan.o: kernels/plan.c kernels/job.h kernels/model.h \
 kernels/ops.h kernels/dtx_engine.h scheduler/base/buf.h \
 scheduler/base/err.h
kernels/job.h:
kernels/model.h:
kernels/ops.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
