build2/kernels/adapter_check.o: kernels/adapter_check.c kernels/ops.h \
 kernels/dtx_engine.h scheduler/base/buf.h scheduler/base/err.h \
 kernels/peft.h kernels/safetensors.h scheduler/base/fdio.h \
 scheduler/base/json.h
kernels/ops.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
kernels/peft.h:
kernels/safetensors.h:
scheduler/base/fdio.h:
scheduler/base/json.h:
