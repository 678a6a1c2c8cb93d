build2/scheduler/base/log.o: scheduler/base/log.c scheduler/base/log.h \
 scheduler/base/clock.h scheduler/base/fdio.h scheduler/base/buf.h \
 scheduler/base/err.h scheduler/base/text.h
scheduler/base/log.h:
scheduler/base/clock.h:
scheduler/base/fdio.h:
scheduler/base/buf.h:
scheduler/base/err.h:
scheduler/base/text.h:
