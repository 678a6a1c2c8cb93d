build2/kernels/model_check.o: kernels/model_check.c kernels/safetensors.h \
 kernels/dtx_engine.h scheduler/base/buf.h scheduler/base/err.h
kernels/safetensors.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
