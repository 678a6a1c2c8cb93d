build2/kernels/peft.o: kernels/peft.c kernels/peft.h kernels/ops.h \
 kernels/dtx_engine.h scheduler/base/buf.h scheduler/base/err.h \
 kernels/safetensors.h scheduler/base/fdio.h
kernels/peft.h:
kernels/ops.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
kernels/safetensors.h:
scheduler/base/fdio.h:
