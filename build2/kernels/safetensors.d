build2/kernels/safetensors.o: kernels/safetensors.c kernels/safetensors.h \
 kernels/dtx_engine.h scheduler/base/buf.h scheduler/base/err.h \
 scheduler/base/fdio.h scheduler/base/json.h
kernels/safetensors.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
scheduler/base/fdio.h:
scheduler/base/json.h:
