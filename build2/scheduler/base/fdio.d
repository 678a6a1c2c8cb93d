build2/scheduler/base/fdio.o: scheduler/base/fdio.c scheduler/base/fdio.h \
 scheduler/base/buf.h scheduler/base/err.h
scheduler/base/fdio.h:
scheduler/base/buf.h:
scheduler/base/err.h:
