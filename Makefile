# Two commands do everything on a fresh Debian machine with python3 and g++:
#   make demo     build, install into .venv, run the prefill/decode demo
#   make test     build, install into .venv, run the whole test suite
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

.PHONY: demo test native lint clean

demo: $(STAMP)
	$(BIN)/llm-datadist demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

native: $(STAMP)
	$(BIN)/pip install -q --no-build-isolation --no-deps -e .

$(STAMP): pyproject.toml CMakeLists.txt $(shell find native -name '*.cc' -o -name '*.h')
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "scikit-build-core>=0.11" "nanobind>=2.9" "cmake>=3.25" ninja
	$(BIN)/pip install -q --no-build-isolation -e ".[plot]"
	$(BIN)/pip install -q "pytest>=8.2" "pytest-timeout>=2.3" "pytest-xdist>=3.6" "hypothesis>=6.100"
	touch $@

clean:
	rm -rf build dist $(VENV)
