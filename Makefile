# make test          the light suite: NumPy, SciPy, pandas, pytest, hypothesis, safetensors
# make test-slow     what takes long in it: memory over thousands of calls, faults at every point, forks, mutated files,
#                    every example of the documentation, programs that are compiled
# make timing        the tests whose verdict depends on the clock, by themselves
# make docs          every example of the documentation, run; then pages of guides and reference in build/docs
# make demo          the forecasting example; CSV=file COLUMN=name for your own data
# make longterm      tasks of the papers on LSTMs, beside a plain RNN; a few minutes
# make test-oracles  against PyTorch, ONNX Runtime and Keras, then what kernels compute on the other ISAs and on BLAS
# make conformance  CASES=folder: other projects' cases, through ONNX files and by their weights
# make test-models  models that other packages ship, fetched by name, loaded and compared
# make random-models 300 random ONNX models, 100 Keras stacks, 200 of PyTorch, saved there and loaded here
# make bench         against other engines; ARGS=--help for what can be chosen
# make instructions  instructions of six calls under valgrind; ARGS='--against main', ARGS=--update
# make bench-kernels single kernels and calls of every ISA; ARGS='-k step' for some of them
# make lint          formatters, linters, words, types, stubs, C warnings;  make format rewrites
# make asan          the light suite under AddressSanitizer and UBSan
# make inner-loops   what compilers make of the kernels' innermost loops, and how fast CPUs could run them
# make kernels       every kernel against plain loops in long double, plain and under ASan; ARGS=--bench
# make kernels-neon  the same for AArch64, by gcc-aarch64-linux-gnu and qemu-user
# make coverage      lines of C, Cython and Python that all tests run but those of time, with a floor for each
# make fuzz          random calls of the core, of Python and of load, and memory that runs out; MINUTES=1 of each
# make soak          random work beside a curve of memory; MINUTES=60
# make tsan          the thread pool's stress test under ThreadSanitizer
# make ulp           the error of sigmoid and tanh over all float32 inputs; ARGS='--sample 20' for fewer
# make check-wheel   sdist -> wheel -> clean environment -> light suite
# make footprint     what cylstm and other engines take: to download, on disk, to import, in memory
# make cross         the C core, compiled for other systems and processors
# make wheels        wheels for every Python, processor and C library; ARGS=--help, docs/wheels.md
# make clean         removes all that the others made
#
# Each sets up what it needs in .venv, with Python, make and a C compiler as the only starting point.
# Stamp files remember what is there. PYTHON=python3.12 chooses another Python (after `make clean`).

PYTHON ?= python3
CC     ?= cc
VENV   := .venv
PY     := $(VENV)/bin/python
STAMPS := $(VENV)/stamps
PIP    := $(PY) -m pip install -q --no-compile # half of its time; what is imported is compiled then
export KERAS_BACKEND := torch
unexport PYTHONDONTWRITEBYTECODE

C_SOURCES := $(wildcard src_c/*.c src_c/kernels/*.c)
C_HEADERS := $(wildcard src_c/*.h src_c/kernels/*.h)
SOURCES   := $(wildcard cylstm/*.pyx cylstm/*.pxd cylstm/*.pxi) $(C_SOURCES) $(C_HEADERS)

PARALLEL = -n auto --maxprocesses 8 --dist loadgroup
SUITE    = $(PY) -m pytest $(PARALLEL) --ignore=tests/oracles
LIGHT    = $(SUITE) -m "not timing and not slow"
# What reads sources is the same on all builds: once, in `make test`, is enough.
ANY_BUILD  = $(addprefix --ignore=tests/test_,architecture.py docs.py import.py kernels.py)
# What kernels compute, for a run on each set, and tests of it that go through all sets themselves. (So do those of
# digests and of narrow weights, whose bits no BLAS gives.)
ON_KERNELS = $(wildcard $(addprefix tests/test_,backward.py dropout.py forward.py isa.py lengths.py linear.py losses.py \
             optim.py optim_state.py packing.py processes.py sharing.py stream*.py thread_numbers.py threads.py variants.py))
EVERY_SET  = $(wildcard $(addprefix tests/test_,cells.py gates.py jvp.py long.py masks.py per_sample.py recurrent_dropout.py \
             zoneout.py))

.DELETE_ON_ERROR:
.PHONY: test test-slow timing docs demo longterm test-oracles conformance test-models random-models bench instructions bench-kernels lint inner-loops format asan \
        coverage kernels kernels-neon fuzz soak tsan ulp footprint check-wheel cross wheels clean

test: $(STAMPS)/cylstm $(STAMPS)/group-test
	$(LIGHT) tests

test-slow: $(STAMPS)/cylstm $(STAMPS)/group-test
	$(SUITE) -m slow tests

timing: $(STAMPS)/cylstm $(STAMPS)/group-test
	$(PY) -m pytest tests -m timing --ignore=tests/oracles

docs: $(STAMPS)/cylstm $(STAMPS)/group-test $(STAMPS)/group-docs
	$(PY) -m pytest tests/test_docs.py
	$(PY) -m sphinx -q -W --keep-going -E -b html docs build/docs
	@echo "build/docs/index.html"

longterm: $(STAMPS)/cylstm $(STAMPS)/extra-examples
	$(PY) examples/longterm.py $(ARGS)

demo: $(STAMPS)/cylstm $(STAMPS)/extra-examples
	$(PY) examples/forecast/forecast.py $(if $(CSV),--csv "$(CSV)") $(if $(COLUMN),--column "$(COLUMN)")

test-oracles: $(STAMPS)/cylstm $(STAMPS)/group-oracles
	$(PY) -m pytest $(PARALLEL) tests/oracles
	@set -e; isas=$$($(PY) -c 'import cylstm; print(*cylstm.show_config()["isa_available"][1:])'); \
	for isa in $$isas; do echo "--- CYLSTM_ISA=$$isa"; CYLSTM_ISA=$$isa $(SUITE) -m "not timing" $(ON_KERNELS); done
	@echo "--- CYLSTM_GEMM=blas"; CYLSTM_GEMM=blas $(SUITE) -m "not timing" $(ON_KERNELS) $(EVERY_SET)

conformance: $(STAMPS)/cylstm $(STAMPS)/group-oracles
	$(PY) tools/conformance.py "$(CASES)" $(ARGS)

test-models: $(STAMPS)/cylstm $(STAMPS)/group-oracles
	$(PY) tools/models.py $(if $(CASES),--cases "$(CASES)") $(ARGS)

random-models: $(STAMPS)/cylstm $(STAMPS)/group-oracles
	CYLSTM_RANDOM_MODELS=all $(PY) -m pytest tests/oracles -k random_ $(ARGS)

bench: $(STAMPS)/cylstm $(STAMPS)/group-bench
	$(PY) -m bench.compare $(ARGS)

instructions: $(STAMPS)/cylstm
	$(PY) -m bench.instructions $(ARGS)

bench-kernels: $(STAMPS)/cylstm $(STAMPS)/group-bench
	$(PY) -m pytest bench/test_kernels.py $(ARGS)

# --- checks without running the library

C_FORMATTED = $(filter-out src_c/kernels/vec_%,$(C_SOURCES) $(C_HEADERS)) $(wildcard tests/*.[ch] bench/*.c examples/*/*.c)
STUBTEST    = --allowlist tools/stubtest.allow --ignore-unused-allowlist --ignore-disjoint-bases
INCLUDES    = import numpy, sysconfig; print('-I' + numpy.get_include(), '-I' + sysconfig.get_path('include'))
C_CHECK     = -std=c11 -O2 -Wall -Wextra -Wconversion -Werror -fsyntax-only

lint: $(STAMPS)/cylstm $(STAMPS)/group-test $(STAMPS)/group-lint
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) tools/words.py
	$(PY) -m mypy
	$(PY) -m mypy.stubtest cylstm._core $(STUBTEST) # the one module whose types stand apart
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cython-lint cylstm # it calls pycodestyle by name
	$(VENV)/bin/clang-format --dry-run -Werror $(C_FORMATTED)
	$(CC) $(C_CHECK) $(C_SOURCES)
	@if command -v clang >/dev/null; then set -ex; clang $(C_CHECK) $(C_SOURCES); \
	clang -std=c11 -fsyntax-only -w -Isrc_c $$($(PY) -c "$(INCLUDES)") build/cython/cylstm/_core.c; \
	else echo "*** SKIPPED: clang is not installed; its warnings were not checked ***"; fi

inner-loops: $(STAMPS)/group-wheels # for zig
	$(PY) tools/inner_loops.py --model $(ARGS)

format: $(STAMPS)/group-lint
	$(PY) -m ruff check --fix
	$(PY) -m ruff format
	$(VENV)/bin/clang-format -i $(C_FORMATTED)

# --- the light suite on a build with sanitizers
# Python's own flags hide signed overflow (-fwrapv) and assertions (-DNDEBUG). The runtimes are
# preloaded because python itself is not instrumented; its leaks are its own. The tests run as a
# copy, so that a process that they start cannot find the repository's cylstm/ first.

ASAN_CFLAGS := -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined \
               -fno-sanitize-recover=undefined -fno-wrapv -UNDEBUG -DCYLSTM_DEBUG

asan: $(STAMPS)/cylstm $(STAMPS)/group-test build/asan/stamp
	cd build/asan && rm -rf tests examples docs src_c
	cp -R tests examples src_c pyproject.toml $(wildcard docs *.md) build/asan
	cd build/asan && export PYTHONPATH="$$PWD/lib" PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	    LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" && \
	../../$(PY) -c 'import cylstm; assert "build/asan/lib" in cylstm.__file__' && \
	../../$(PY) -m pytest -p no:cacheprovider tests -m "not timing" --ignore=tests/oracles $(ANY_BUILD)

build/asan/stamp: $(SOURCES) $(wildcard cylstm/*.py cylstm/*/*.py) setup.py $(STAMPS)/cylstm
	rm -rf build/asan/lib
	CYLSTM_CFLAGS="$(ASAN_CFLAGS)" $(PY) setup.py -q build --build-temp build/asan/temp --build-lib build/asan/lib
	@touch $@

# --- the light suite and the oracles on a build that counts which lines run
# Cython's plugin looks for its C file and its sources beside the extension. Not optimised: gcc 12
# at -O1 makes counting AVX-512 kernels that lose pointers. Threads lose counts of one another, so that
# gcov finds branches taken fewer than 0 times, and inner loops run more than 2^32 times, which gcovr takes
# for a fault of gcov's; whether a line ran is not in doubt. What the tests start as processes of their own
# counts for C alone: in Python a tracer loses what handlers of signals raise. From Python 3.13 on Cython's
# lines go to sys.monitoring, where coverage does not hear of them, and the floor is one of Python alone.
# A process that may use a single CPU has no helpers: 3 % of the lines of C.

COVERAGE_CFLAGS := -O0 -g1 --coverage -fprofile-update=single
C_FLOOR         := 96
PYTHON_FLOOR    := 95

coverage: $(STAMPS)/cylstm $(STAMPS)/group-oracles $(STAMPS)/group-coverage build/coverage/stamp
	cd build/coverage && rm -rf tests tools examples docs src_c .coverage && find . -name '*.gcda' -delete
	cp -R tests tools examples src_c pyproject.toml $(wildcard docs *.md) build/coverage
	cd build/coverage && export PYTHONPATH="$$PWD" && ../../$(PY) -m coverage run -m pytest -p no:cacheprovider \
	    tests -m "not timing" $(ANY_BUILD)
	$(PY) -m gcovr --root . --object-directory build/coverage/temp --filter src_c/ --txt-metric line \
	    --gcov-ignore-parse-errors negative_hits.warn_once_per_file --gcov-suspicious-hits-threshold 0 --fail-under-line $(C_FLOOR)
	cd build/coverage && ../../$(PY) -m coverage report --fail-under=$(PYTHON_FLOOR)

build/coverage/stamp: $(SOURCES) $(wildcard cylstm/*.py cylstm/*/*.py) setup.py $(STAMPS)/cylstm
	rm -rf build/coverage build/cython-trace
	CYLSTM_TRACE=1 CYLSTM_CFLAGS="$(COVERAGE_CFLAGS)" $(PY) setup.py -q build --build-temp build/coverage/temp --build-lib build/coverage
	cp build/cython-trace/cylstm/_core.c $(wildcard cylstm/*.pyx cylstm/*.pxi cylstm/*.pxd) build/coverage/cylstm
	@touch $@

# --- programs of tests/, with the core alone: build/c-KIND/NAME

C_FLAGS_plain = -O3
C_FLAGS_asan  = $(ASAN_CFLAGS)
C_FLAGS_tsan  = -O1 -g1 -fsanitize=thread
C_FLAGS_neon  = -O2 -static
CC_neon       = aarch64-linux-gnu-gcc

define PROGRAMS
build/c-$(1)/core/%.o: src_c/%.c $(C_HEADERS)
	@mkdir -p $$(@D)
	$(or $(CC_$(1)),$(CC)) -std=c11 -ffp-contract=off -pthread $(C_FLAGS_$(1)) -c -o $$@ $$<

build/c-$(1)/%: tests/%.c tests/guarded.h $(C_SOURCES:src_c/%.c=build/c-$(1)/core/%.o)
	$(or $(CC_$(1)),$(CC)) -std=c11 -ffp-contract=off -pthread $(C_FLAGS_$(1)) -Isrc_c -o $$@ $$(filter-out %.h,$$^) -lm
endef
$(foreach kind,plain asan tsan neon,$(eval $(call PROGRAMS,$(kind))))
$(foreach kind,plain asan neon,build/c-$(kind)/kernels): $(wildcard tests/kernels_*.[ch]) # one program
$(foreach kind,plain asan neon,build/c-$(kind)/calls): $(wildcard tests/calls_*.[ch])
.SECONDARY: # else make would delete the objects

kernels: build/c-plain/kernels build/c-asan/kernels build/c-asan/calls
	build/c-plain/kernels $(ARGS)
	build/c-asan/kernels $(ARGS)
	build/c-asan/calls

# Emulated: with the dot products of int8, and without.
kernels-neon: build/c-neon/kernels build/c-neon/calls
	qemu-aarch64 -cpu max $< $(ARGS)
	qemu-aarch64 -cpu cortex-a53 $< $(ARGS)
	qemu-aarch64 -cpu max build/c-neon/calls

# --- random work, for MINUTES of each kind
# The kernels are not instrumented, which takes clang many minutes: guard pages watch them (guarded.h).

FUZZ_FLAGS = -std=c11 -ffp-contract=off -O1 -g1 -fno-omit-frame-pointer -pthread -Isrc_c -DCYLSTM_DEBUG
FUZZ_KERNELS = $(patsubst src_c/%.c,build/c-fuzz/core/%.o,$(wildcard src_c/kernels/*.c))

build/c-fuzz/core/%.o: src_c/%.c $(C_HEADERS)
	@mkdir -p $(@D)
	clang $(FUZZ_FLAGS) -c -o $@ $<

build/c-fuzz/calls: $(wildcard tests/calls*.[ch]) tests/guarded.h $(wildcard src_c/*.c) $(FUZZ_KERNELS)
	clang $(FUZZ_FLAGS) -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
	    -DCYLSTM_FUZZ -o $@ $(filter-out %.h,$^) -lm

build/libfaults.so: tests/faults.c
	@mkdir -p $(@D)
	$(CC) -std=c11 -O1 -shared -fPIC -o $@ $<

fuzz: MINUTES = 1
fuzz: $(STAMPS)/cylstm $(STAMPS)/group-test build/libfaults.so
	@if command -v clang >/dev/null; then set -ex; $(MAKE) build/c-fuzz/calls; mkdir -p build/c-fuzz/corpus; \
	build/c-fuzz/calls -max_total_time=$$((60 * $(MINUTES))) -max_len=256 -print_final_stats=1 \
	    -artifact_prefix=build/c-fuzz/ build/c-fuzz/corpus tests/fuzz/calls; \
	else echo "*** SKIPPED: clang is not installed; the core was not fuzzed ***"; fi
	$(PY) -W ignore tests/fuzz/python.py $(MINUTES)
	cd tests && LD_PRELOAD=../build/libfaults.so PYTHONMALLOC=malloc ../$(PY) faults.py

soak: MINUTES = 60
soak: $(STAMPS)/cylstm $(STAMPS)/group-test
	$(PY) tests/soak.py $(MINUTES)

tsan: build/c-tsan/threads
	build/c-tsan/threads helped

ulp: build/c-plain/ulp
	build/c-plain/ulp $(ARGS)

# --- packaging

footprint: $(STAMPS)/group-bench $(STAMPS)/group-wheel
	$(PY) -m tools.footprint $(ARGS)

check-wheel: $(STAMPS)/group-wheel
	$(PY) tools/check_wheel.py

# Compiled, not run: where there are no threads of POSIX the core has none, where there are no
# kernels of its own it takes the portable ones.
CROSS_TARGETS = x86_64-windows-gnu aarch64-windows-gnu x86_64-macos aarch64-macos x86_64-linux-musl \
                aarch64-linux-musl x86-linux-musl arm-linux-musleabihf riscv64-linux-musl s390x-linux-musl

cross: $(STAMPS)/group-wheels
	@set -e; for target in $(CROSS_TARGETS); do echo "--- $$target"; mkdir -p build/cross/$$target; \
	for source in $(C_SOURCES); do $(PY) -m ziglang cc -target $$target -std=c11 -O2 \
	    -Wall -Wextra -Werror -c $$source -o build/cross/$$target/$$(basename $$source .c).o; done; done

wheels: $(STAMPS)/group-wheels
	$(PY) tools/wheels.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info cylstm/*.so .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the virtual environment

$(STAMPS)/venv:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade 'pip>=25.1'
	@mkdir -p $(@D) && touch $@

# A dependency group of pyproject.toml.
$(STAMPS)/group-%: pyproject.toml $(STAMPS)/venv
	$(PIP) --group $*
	@touch $@

# What an optional extra of the package asks for.
$(STAMPS)/extra-%: pyproject.toml $(STAMPS)/cylstm
	$(PIP) 'cylstm[$*]'
	@touch $@

# The package itself, editable: the repository's cylstm/ is then the installed package, whatever
# the working directory, and no stale copy can stand in for it. (A plain install would be shadowed
# by cylstm/ in any test that starts `python -c` from here.) What a user gets, the wheel, is put
# to the same tests by `make check-wheel`. Without build isolation a rebuild costs the compiler only.
# The .pth puts the repository on sys.path, which is where Cython looks for embed.pxd.
$(STAMPS)/cylstm: $(SOURCES) setup.py pyproject.toml $(STAMPS)/group-build
	PYTHONWARNINGS=ignore $(PIP) --no-build-isolation --editable .
	@echo "$(CURDIR)" >"$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/repository.pth"
	@touch $@
