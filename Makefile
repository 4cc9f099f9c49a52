# Two commands: `make demo` shows ATTEMPT at work, `make test` runs every test. Python 3.11 and make are all they need.

# Which interpreter makes the environment, and which torch goes into it, e.g.
#   make demo PYTHON=/opt/python3.11/bin/python3
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3.11 python3 python
TORCH ?= torch==2.13.0
CONFIG ?= embedded
UV ?= uv
DATA ?= ../shared/data
BACKBONE ?= t5-small
KILLS ?= 200
RAY_KILLS ?= 5

BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test bench kills check lock clean
MAKEFLAGS += --no-print-directory

help:
	@echo "make demo    train, evaluate and explain prompts on the embedded tasks (offline, minutes)"
	@echo "make test    run the tests"
	@echo "make bench   measure the speed of training and answering against peers (DATA=directory of real rows)"
	@echo "make kills   kill and damage training a few hundred times (KILLS without Ray, RAY_KILLS of each part under Ray)"
	@echo "make check   lint, format, types, import law, tests"
	@echo "make lock    resolve requirements/dev.in into requirements/lock.txt"

install: $(STAMP)

# The lock decides: the stamp is older than it exactly when something has to be installed. It is whole but for torch, so pip
# looks for nothing else. Pip compiles on one core.
$(STAMP): requirements/lock.txt pyproject.toml
	@if [ ! -x $(BIN)/python ]; then \
	  for python in $(PYTHON); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "no Python 3.11 among: $(PYTHON); install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	  fi; \
	  echo "making .venv with $$found"; "$$found" -m venv .venv; \
	fi
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo ".venv is not Python 3.11; remove it (rm -r .venv) and run make again" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --require-hashes --no-deps --requirement requirements/lock.txt
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null || true
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m jobs.run_pipeline --config $(CONFIG)

# Clusters get both cores to themselves; all other tests share them.
test: $(STAMP)
ifdef ARGS
	@$(BIN)/python -m pytest $(ARGS)
else
	@$(BIN)/python -m pytest tests/ray
	@$(BIN)/python -m pytest --numprocesses 2 tests/contract tests/unit
endif

bench: $(STAMP)
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps --requirement requirements/bench.txt
	@$(BIN)/python tests/benchmark/training.py --data $(DATA) --backbone $(BACKBONE) --out docs/benchmarks/training-$(BACKBONE).json
	@$(BIN)/python tests/benchmark/packing.py --data $(DATA) --backbone $(BACKBONE) --out docs/benchmarks/packing-$(BACKBONE).json
	@$(BIN)/python tests/benchmark/pool.py --out docs/benchmarks/pool.json
	@$(BIN)/python tests/benchmark/serving.py --data $(DATA) --backbone $(BACKBONE) --out docs/benchmarks/serving-$(BACKBONE).json
	@$(BIN)/python tests/benchmark/engine.py --data $(DATA) --backbone $(BACKBONE) --out docs/benchmarks/engine-$(BACKBONE).json
	@$(BIN)/python tests/benchmark/deployment.py --data $(DATA) --backbone $(BACKBONE) --out docs/benchmarks/deployment-$(BACKBONE).json

# Each test tells how often it killed; nice 0 for the workers, which Ray else runs at nice 15.
kills: $(STAMP)
	@ATTEMPT_KILLS=$(KILLS) ATTEMPT_RAY_KILLS=$(RAY_KILLS) RAY_worker_niceness=0 $(BIN)/python -m pytest \
	  -o timeout=7200 tests/unit/training/test_resume.py tests/unit/training/test_mirror.py \
	  tests/unit/training/test_checkpoint.py tests/unit/jobs/test_run_study.py tests/ray/test_kills.py tests/ray/test_tuner.py tests/ray/test_tune_kills.py tests/ray/test_serve.py tests/ray/test_submit.py $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	@$(MAKE) test

lock:
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: pip install uv, or name it: make lock UV=/path/to/uv" >&2; exit 1; }
	$(UV) pip compile --quiet --upgrade --python-version 3.11 --generate-hashes --override requirements/apart.in \
	  requirements/dev.in --output-file requirements/lock.txt

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
