# The commands of this repository. `make train` and `make test` set everything up by themselves.
PYTHON ?= python3
VENV ?= .venv
# Versions that the tests pass with. Where one is not served, and where this is empty, the newest
# that setup.cfg allows are installed.
CONSTRAINTS ?= constraints/tested.txt
TABLE ?= digits
ARGS ?=

BIN := $(VENV)/bin
# Made once the environment is complete; older than the package's metadata means: install again.
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
HINT := "The npas commands are in $(BIN): '. $(BIN)/activate' puts them on the PATH."
# Small networks on small images: a second thread costs more than it brings.
QUIET_THREADS := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help install train test test-faults test-exps test-slow lint type format bench zoo table report reproduce-table clean-runs

help:  ## list these targets
	@awk -F ":.*## " '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(READY)  ## make .venv and install npas with everything its tests need (once; 6.3 GB)

$(READY): setup.cfg pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "npas needs Python 3.10 or newer as '$(PYTHON)'; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Setting up $(VENV), once: a few minutes, 6.3 GB of disk."
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	@if $(PIP) install --quiet $(addprefix --constraint ,$(CONSTRAINTS)) --editable '.[dev]'; \
	then echo "Installed the versions of $(or $(CONSTRAINTS),setup.cfg)."; \
	else $(PIP) install --quiet --editable '.[dev]' && \
	  echo "Not every version of $(CONSTRAINTS) could be installed (see above):" \
	    "the newest that setup.cfg allows were installed instead, which may not be tested."; fi
	@echo $(HINT)
	@touch $@

train: $(READY)  ## train the default experiment (digits at a tenth of its parameters, about a minute)
	$(BIN)/npas-train $(ARGS)
	@echo $(HINT)

test: $(READY)  ## run the quick tests
	$(QUIET_THREADS) $(BIN)/python -m pytest -n auto $(ARGS)

test-faults: $(READY)  ## run what starts, kills and starves real processes (under five minutes)
	$(QUIET_THREADS) $(BIN)/python -m pytest -n auto -m "(fault or dist) and not slow" $(ARGS)

test-exps: $(READY)  ## train every experiment on synthetic data, and plan it at every budget
	$(QUIET_THREADS) $(BIN)/python -m pytest -n 2 -m walk $(ARGS)

test-slow: $(READY)  ## run the slow tests: trainings, a built wheel
	$(QUIET_THREADS) $(BIN)/python -m pytest -n auto -m slow $(ARGS)

lint: $(READY)  ## check style with ruff
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

type: $(READY)  ## check types with mypy
	$(BIN)/mypy

format: $(READY)  ## rewrite the code in its style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## time a shared training step beside the dense one
	$(QUIET_THREADS) $(BIN)/python scripts/bench.py $(ARGS)

zoo: $(READY)  ## share 130 public architectures, those results/zoo lacks (hours for all)
	$(QUIET_THREADS) $(BIN)/python scripts/zoo.py $(ARGS)

table: $(READY)  ## print a table from the committed results (TABLE=digits)
	$(BIN)/npas-table $(TABLE)

report: $(READY)  ## write report.html, one page of all committed results
	$(BIN)/npas-report $(ARGS)

reproduce-table: $(READY)  ## run what TABLE lacks and write it to results/ (ESTIMATE=1: only say what)
	$(BIN)/python scripts/reproduce_table.py $(TABLE) $(if $(ESTIMATE),--estimate)

clean-runs:  ## delete runs/ (committed results stay)
	rm -rf runs
