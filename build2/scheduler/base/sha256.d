build2/scheduler/base/sha256.o: scheduler/base/sha256.c \
 scheduler/base/sha256.h scheduler/base/err.h scheduler/base/fdio.h \
 scheduler/base/buf.h
scheduler/base/sha256.h:
scheduler/base/err.h:
scheduler/base/fdio.h:
scheduler/base/buf.h:
