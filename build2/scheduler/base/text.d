build2/scheduler/base/text.o: scheduler/base/text.c scheduler/base/text.h \
 scheduler/base/err.h
scheduler/base/text.h:
scheduler/base/err.h:
