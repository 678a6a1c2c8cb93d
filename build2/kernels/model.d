build2/kernels/model.o: kernels/model.c kernels/model.h kernels/ops.h \
 kernels/dtx_engine.h scheduler/base/buf.h scheduler/base/err.h \
 kernels/safetensors.h kernels/seq.h
kernels/model.h:
kernels/ops.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
kernels/safetensors.h:
kernels/seq.h:
