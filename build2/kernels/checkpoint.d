build2/kernels/checkpoint.o: kernels/checkpoint.c kernels/job.h \
 kernels/model.h kernels/ops.h kernels/dtx_engine.h scheduler/base/buf.h \
 scheduler/base/err.h scheduler/base/fdio.h scheduler/base/sha256.h
kernels/job.h:
kernels/model.h:
kernels/ops.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
scheduler/base/fdio.h:
scheduler/base/sha256.h:
