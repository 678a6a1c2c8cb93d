build2/kernels/tokenizer_vocab.o: kernels/tokenizer_vocab.c \
 kernels/tokenizer_impl.h kernels/dtx_engine.h scheduler/base/buf.h \
 scheduler/base/err.h
kernels/tokenizer_impl.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
