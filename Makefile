# DTX.  Variants: make SAN=address|undefined|thread, CC=clang, FUZZING=1 (with clang: coverage for the fuzzers).  Everything is built under $(BUILD).
SAN     ?=
CC      := $(if $(filter default,$(origin CC)),gcc,$(CC))
BUILD   ?= build$(if $(SAN),-$(SAN))$(if $(findstring clang,$(CC)),-clang)$(if $(FUZZING),-fuzz)
PKGS    := fuse3 jansson sqlite3 libpcre2-8 libutf8proc libcrypto zlib openblas

# Goals that do not need the libraries to be there yet.
BOOTSTRAP := deps demo test clean format check-all
ifneq ($(filter-out $(BOOTSTRAP),$(or $(MAKECMDGOALS),all)),)
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS))
PKG_LIBS   := $(shell pkg-config --libs $(PKGS))
CHECK_LIBS  = $(shell pkg-config --libs check)
endif

CFLAGS  ?= -O2 -g
SAN_FLAGS := $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer)
WARN    := -Wall -Wextra -Werror -Wstrict-prototypes -Wmissing-prototypes -Wno-unused-parameter
ALL_CFLAGS  = -std=gnu17 $(CFLAGS) $(WARN) -fno-strict-aliasing -ffp-contract=off -pthread -D_GNU_SOURCE \
              -DFUSE_USE_VERSION=314 -I. $(PKG_CFLAGS) $(SAN_FLAGS) \
              $(if $(FUZZING),-fsanitize=fuzzer-no-link)
ALL_LIBS    = -Wl,--as-needed $(PKG_LIBS) -lm -ldl -lpthread $(if $(SAN),-fsanitize=$(SAN))
# The CPU operations: AVX2 is the floor, so that a result does not depend on the machine that built it.
KERNEL_CFLAGS := -O3 -mavx2 -mfma -mf16c

# One short line a file; V=1 shows the commands.
Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-4s %s\n' $(1) $(2))

src = $(wildcard $(addsuffix /*.c,$(1)))
obj = $(patsubst %.c,$(BUILD)/%.o,$(1))
BASE_OBJ   := $(call obj,$(call src,scheduler/base))
KERNEL_OBJ := $(call obj,$(call src,kernels kernels/cpu))
LAYOUT_OBJ := $(call obj,$(call src,mnt-layout))
SCHED_OBJ  := $(call obj,$(call src,scheduler scheduler/report))
WORKER_OBJ := $(call obj,$(filter-out scheduler/worker/main.c,$(call src,scheduler/worker scheduler/data scheduler/score)))
FSD_OBJ    := $(call obj,$(filter-out fsd/main.c,$(call src,fsd)))
LIBS       := $(FSD_OBJ) $(WORKER_OBJ) $(SCHED_OBJ) $(LAYOUT_OBJ) $(KERNEL_OBJ) $(BASE_OBJ)
UNIT       := $(patsubst tests/unit/%.c,$(BUILD)/tests/%,$(wildcard tests/unit/test_*.c))
FUZZ       := $(patsubst tests/fuzz/%.c,$(BUILD)/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))

all: $(BUILD)/dtxd $(BUILD)/dtx-worker

$(BUILD)/dtxd: $(BUILD)/fsd/main.o $(FSD_OBJ) $(SCHED_OBJ) $(LAYOUT_OBJ) $(BASE_OBJ)
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $^ $(ALL_LIBS)

$(BUILD)/dtx-worker: $(BUILD)/scheduler/worker/main.o $(WORKER_OBJ) $(SCHED_OBJ) $(LAYOUT_OBJ) $(KERNEL_OBJ) $(BASE_OBJ)
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $^ $(ALL_LIBS)

$(BUILD)/kernels/%.o: CFLAGS += $(KERNEL_CFLAGS)
$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

# .incbin leaves no trace in the dependency files.
$(BUILD)/mnt-layout/layout_embed.o: mnt-layout/bin_dtx.sh $(wildcard mnt-layout/text/*.md)

# Tests take what they need from one archive of everything.
$(BUILD)/libdtx.a: $(LIBS)
	$(Q)rm -f $@
	$(Q)ar rcs $@ $^

$(BUILD)/tests/%: tests/unit/%.c $(BUILD)/libdtx.a
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_CFLAGS) -MMD -MP -MF $@.d -o $@ $< $(BUILD)/libdtx.a $(CHECK_LIBS) $(ALL_LIBS)

# Fuzz targets: with clang they are libFuzzer programs, with gcc a driver runs the files given to them.
$(BUILD)/fuzz/%: tests/fuzz/%.c $(BUILD)/libdtx.a $(if $(findstring clang,$(CC)),,tests/fuzz/driver.c)
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(if $(findstring clang,$(CC)),-fsanitize=fuzzer) -MMD -MP -MF $@.d -o $@ $(filter %.c,$^) $(BUILD)/libdtx.a $(ALL_LIBS)

$(BUILD)/dtx.layout.5: packaging/man/layout_page.c $(LAYOUT_OBJ) $(BASE_OBJ)
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_CFLAGS) -o $(BUILD)/layout_page $^ $(ALL_LIBS)
	$(BUILD)/layout_page >$@
$(BUILD)/dtxd.conf.5: $(BUILD)/dtx.layout.5
	$(BUILD)/layout_page conf >$@

PREFIX ?= /usr/local
install: all $(BUILD)/dtx.layout.5 $(BUILD)/dtxd.conf.5
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man5 $(DESTDIR)$(PREFIX)/share/man/man8 \
	    $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 755 $(BUILD)/dtxd $(BUILD)/dtx-worker $(wildcard $(BUILD)/dtx_cuda.so) $(DESTDIR)$(PREFIX)/bin
	install -m 755 mnt-layout/bin_dtx.sh $(DESTDIR)$(PREFIX)/bin/dtx
	install -m 644 $(BUILD)/dtx.layout.5 $(BUILD)/dtxd.conf.5 $(DESTDIR)$(PREFIX)/share/man/man5
	install -m 644 packaging/man/dtxd.8 $(DESTDIR)$(PREFIX)/share/man/man8
	sed 's,/usr/bin/dtxd,$(PREFIX)/bin/dtxd,' packaging/systemd/dtxd.service \
	    >$(DESTDIR)$(PREFIX)/lib/systemd/system/dtxd.service

units: $(UNIT)
fuzzers: $(FUZZ)

deps:
	packaging/deps.sh

demo:
	@packaging/deps.sh --if-missing
	@$(MAKE) --no-print-directory -j$$(nproc) all
	@packaging/demo/run.sh

test:
	@packaging/deps.sh --if-missing
	@$(MAKE) --no-print-directory -j$$(nproc) all units
	@BUILD=$(BUILD) tests/run.sh

check-all:
	@packaging/deps.sh --if-missing --tests --clang
	@tests/check-all.sh

format:
	clang-format -i $$(git ls-files '*.c' '*.h')

clean:
	rm -rf build build-*

.PHONY: all install units fuzzers deps demo test check-all format clean
.SECONDARY:
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

# ---- CUDA: kernels/cuda -> dtx_cuda.so, loaded at run time; only where nvcc is there ----
NVCC      ?= $(or $(shell command -v nvcc 2>/dev/null),$(wildcard /usr/local/cuda/bin/nvcc))
GENCODE   ?= -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=compute_90
CU_SRC    := $(wildcard kernels/cuda/*.cu)
CU_OBJ    := $(patsubst %.cu,build/%.cu.o,$(CU_SRC))

cuda: build/dtx_cuda.so
build/kernels/cuda/%.cu.o: kernels/cuda/%.cu $(wildcard kernels/cuda/*.cuh kernels/cuda/ptx/*.cuh kernels/cuda/*.h kernels/*.h)
	@mkdir -p $(@D)
	$(call say,NVCC,$@)
	$(Q)$(NVCC) -std=c++17 -O3 -I. $(GENCODE) -lineinfo -Xcompiler -fPIC,-Wall,-Wextra -c -o $@ $<
CU_BASE   := $(patsubst %,build/kernels/cuda/%.o,err text_control)
build/kernels/cuda/%.o: scheduler/base/%.c
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(CC) $(ALL_CFLAGS) -fPIC -c -o $@ $<
build/dtx_cuda.so: $(CU_OBJ) $(CU_BASE)
	$(call say,LD,$@)
	$(Q)$(NVCC) -shared -cudart static -Xlinker -z,defs -o $@ $(CU_OBJ) $(CU_BASE) -lcublasLt -lm
build/gpu_parity: tests/gpu/parity_decode.h tests/gpu/parity_shapes.h
build/gpu_%: tests/gpu/%.c $(KERNEL_OBJ) $(BASE_OBJ)
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $< $(KERNEL_OBJ) $(BASE_OBJ) $(ALL_LIBS)
build/engine_bench: tests/bench/engine_bench.c $(KERNEL_OBJ) $(BASE_OBJ)
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $< $(KERNEL_OBJ) $(BASE_OBJ) $(ALL_LIBS)
.PHONY: cuda soft

# ---- the same kernels on a device in software (kernels/cuda/soft), for tests on machines without a GPU ----
CXX       ?= g++
SOFT_ARCH := $(if $(filter x86_64,$(shell uname -m)),-mavx2 -mfma -mtls-dialect=gnu2)
SOFT_DIR  := $(BUILD)/soft
SOFT_OBJ  := $(patsubst kernels/cuda/%,$(SOFT_DIR)/%.o,$(CU_SRC) $(wildcard kernels/cuda/soft/*.cc))
SOFT_BASE := $(patsubst %,$(SOFT_DIR)/%.o,err text_control)
SOFT_HEAD := $(shell find kernels/cuda -name '*.cuh' -o -name '*.h') $(wildcard kernels/*.h)

soft: $(SOFT_DIR)/dtx_cuda.so $(SOFT_DIR)/gpu_parity
$(SOFT_DIR)/%.o: kernels/cuda/% $(SOFT_HEAD)
	@mkdir -p $(@D)
	$(call say,CXX,$@)
	$(Q)$(CXX) -x c++ -std=c++17 -O3 $(SOFT_ARCH) -g1 -fPIC -fno-strict-aliasing -Wall -Wextra -Werror -Wno-unused-function -Wno-unused-parameter -Wno-unknown-pragmas -Wno-psabi $(SAN_FLAGS) \
	    -Ikernels/cuda/soft/include -I. -c -o $@ $<
$(SOFT_DIR)/%.o: scheduler/base/%.c
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(CC) $(ALL_CFLAGS) -fPIC -c -o $@ $<
$(SOFT_DIR)/dtx_cuda.so: $(SOFT_OBJ) $(SOFT_BASE)
	$(call say,LD,$@)
	$(Q)$(CXX) -shared $(SAN_FLAGS) -Wl,-z,defs,-z,nodelete -o $@ $^ -lpthread -lm
$(SOFT_DIR)/gpu_%: tests/gpu/%.c $(KERNEL_OBJ) $(BASE_OBJ) tests/gpu/parity_decode.h tests/gpu/parity_shapes.h
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $< $(KERNEL_OBJ) $(BASE_OBJ) $(ALL_LIBS)
