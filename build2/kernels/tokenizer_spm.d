build2/kernels/tokenizer_spm.o: kernels/tokenizer_spm.c \
 kernels/tokenizer_impl.h kernels/dtx_engine.h scheduler/base/buf.h \
 scheduler/base/err.h scheduler/base/text.h
kernels/tokenizer_impl.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
scheduler/base/text.h:
