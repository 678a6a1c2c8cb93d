build2/kernels/safetensors_write.o: kernels/safetensors_write.c \
 kernels/safetensors.h kernels/dtx_engine.h scheduler/base/buf.h \
 scheduler/base/err.h scheduler/base/fdio.h
kernels/safetensors.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
scheduler/base/fdio.h:
