build2/kernels/decode.o: kernels/decode.c kernels/seq.h kernels/model.h \
 kernels/ops.h kernels/dtx_engine.h scheduler/base/buf.h \
 scheduler/base/err.h
kernels/seq.h:
kernels/model.h:
kernels/ops.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
