build2/scheduler/base/clock.o: scheduler/base/clock.c \
 scheduler/base/clock.h
scheduler/base/clock.h:
