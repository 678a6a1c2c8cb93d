build2/kernels/tokenizer.o: kernels/tokenizer.c kernels/tokenizer_impl.h \
 kernels/dtx_engine.h scheduler/base/buf.h scheduler/base/err.h \
 scheduler/base/fdio.h scheduler/base/json.h scheduler/base/sha256.h
kernels/tokenizer_impl.h:
kernels/dtx_engine.h:
scheduler/base/buf.h:
scheduler/base/err.h:
scheduler/base/fdio.h:
scheduler/base/json.h:
scheduler/base/sha256.h:
