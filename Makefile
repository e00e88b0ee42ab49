# Two commands set up a fresh machine with Python >= 3.11, a C++ compiler and make, and nothing else:
#   make train        install, train, evaluate: `storm` on a GPU, `tiny` (Freeway) on a CPU
#   make test         install, run the whole test suite
# and a third measures this machine:
#   make bench        install, run all benchmarks, store them in bench/results/, write reports and their page
# For those who change it: make check (style, types, who imports whom), make fmt (writes the style).
# More words for the trainer: make train ARGS="--game Breakout --seed 2"

PYTHON ?= python3
VENV ?= .venv
STAMP := $(shell date -u +%Y%m%d-%H%M%S)
RUN ?= runs/make-train-$(STAMP)
ARGS ?=
BIN := $(VENV)/bin

.PHONY: train test bench check fmt

train: $(VENV)/.installed
	$(BIN)/python -m storm_fast.train --run-dir $(RUN) $(ARGS)
	$(BIN)/python -m storm_fast.evaluate $(RUN) --episodes 10 --num-envs 10

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest tests/aot

bench: $(VENV)/.installed-bench
	$(BIN)/python -m pytest bench/ --benchmark-only --store
	$(BIN)/python -m bench.instrument.report --page

CPP := $(shell find storm_fast/envs/csrc -name '*.cpp' -o -name '*.h' -o -name '*.inc')

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/python -m pytest -q tests/test_imports.py

fmt: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

SOURCES := pyproject.toml CMakeLists.txt $(wildcard storm_fast/envs/csrc/*.* storm_fast/envs/csrc/*/*)

$(VENV)/.installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $(VENV)/.installed $@

$(VENV)/.installed-bench: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	touch $(VENV)/.installed $@
