build2/kernels/device.o: kernels/device.c kernels/ops.h \
 kernels/dtx_engine.h scheduler/base/buf.h scheduler/base/err.h
kernels/ops.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
