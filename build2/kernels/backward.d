build2/kernels/backward.o: kernels/backward.c kernels/model.h \
 kernels/ops.h kernels/dtx_engine.h scheduler/base/buf.h \
 scheduler/base/err.h
kernels/model.h:
kernels/ops.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
