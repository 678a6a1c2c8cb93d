build2/kernels/cpu/pool.o: kernels/cpu/pool.c kernels/cpu/pool.h
kernels/cpu/pool.h:
