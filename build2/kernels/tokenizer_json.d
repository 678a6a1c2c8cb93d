build2/kernels/tokenizer_json.o: kernels/tokenizer_json.c \
 kernels/tokenizer_impl.h kernels/dtx_engine.h scheduler/base/buf.h \
 scheduler/base/err.h scheduler/base/json.h scheduler/base/text.h
kernels/tokenizer_impl.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
scheduler/base/json.h:
scheduler/base/text.h:
