build2/scheduler/base/buf.o: scheduler/base/buf.c scheduler/base/buf.h \
 scheduler/base/text.h scheduler/base/err.h
scheduler/base/buf.h:
scheduler/base/text.h:
scheduler/base/err.h:
