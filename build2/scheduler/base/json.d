build2/scheduler/base/json.o: scheduler/base/json.c scheduler/base/json.h \
 scheduler/base/buf.h scheduler/base/err.h scheduler/base/fdio.h \
 scheduler/base/text.h
scheduler/base/json.h:
scheduler/base/buf.h:
scheduler/base/err.h:
scheduler/base/fdio.h:
scheduler/base/text.h:
