build2/kernels/config.o: kernels/config.c kernels/safetensors.h \
 kernels/dtx_engine.h scheduler/base/buf.h scheduler/base/err.h \
 scheduler/base/json.h
kernels/safetensors.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
scheduler/base/json.h:
