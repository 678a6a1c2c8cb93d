build2/kernels/lora.o: kernels/lora.c kernels/job.h kernels/model.h \
 kernels/ops.h kernels/dtx_engine.h scheduler/base/buf.h \
 scheduler/base/err.h kernels/peft.h kernels/safetensors.h kernels/rng.h
kernels/job.h:
kernels/model.h:
kernels/ops.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
kernels/peft.h:
kernels/safetensors.h:
kernels/rng.h:
