build2/kernels/job.o: kernels/job.c kernels/job.h kernels/model.h \
 kernels/ops.h kernels/dtx_engine.h scheduler/base/buf.h \
 scheduler/base/err.h kernels/peft.h kernels/safetensors.h \
 scheduler/base/sha256.h
kernels/job.h:
kernels/model.h:
kernels/ops.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
kernels/peft.h:
kernels/safetensors.h:
scheduler/base/sha256.h:
