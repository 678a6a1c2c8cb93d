build2/scheduler/base/err.o: scheduler/base/err.c scheduler/base/err.h \
 scheduler/base/text.h
scheduler/base/err.h:
scheduler/base/text.h:
