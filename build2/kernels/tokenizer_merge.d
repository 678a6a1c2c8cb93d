build2/kernels/tokenizer_merge.o: kernels/tokenizer_merge.c \
 kernels/tokenizer_impl.h kernels/dtx_engine.h scheduler/base/buf.h \
 scheduler/base/err.h
kernels/tokenizer_impl.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
