build2/kernels/safetensors_values.o: kernels/safetensors_values.c \
 kernels/safetensors.h kernels/dtx_engine.h scheduler/base/buf.h \
 scheduler/base/err.h
kernels/safetensors.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
