build2/scheduler/base/text_control.o: scheduler/base/text_control.c \
 scheduler/base/text.h scheduler/base/err.h
scheduler/base/text.h:
scheduler/base/err.h:
