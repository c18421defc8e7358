# `make demo` and `make test` are all a newcomer needs; each makes the environment once and reuses it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: help demo quick test durations proof lint types clean

help:            ## list the commands
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/  -/'

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sightline needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/made pyproject.toml
	@echo "Installing Sightline and what it needs; this happens once."
	@$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/equipped: $(VENV)/installed
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(VENV)/installed ## train, test and report on the embedded digits: nothing to download
	@$(BIN)/sightline demo

lint: $(VENV)/equipped ## style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/equipped ## static types
	@$(BIN)/basedpyright

test: lint types ## everything: style, types, architecture, laws, oracles, bad input, README
	@OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal -q

quick: $(VENV)/equipped ## style, architecture, and the fast tests of the stages that changed: under two minutes
	@$(BIN)/ruff check . && $(BIN)/ruff format --check -q .
	@OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal -q --quick

durations: $(VENV)/equipped ## run every test and record those that take more than a second
	@OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal -q --record-durations --durations=50

proof: $(VENV)/equipped ## long protocols, run by hand: what no test has the time for
	@OMP_NUM_THREADS=1 $(BIN)/python proof/tuning_kills.py
	@OMP_NUM_THREADS=1 $(BIN)/python proof/kills.py
	@OMP_NUM_THREADS=1 $(BIN)/python proof/two_hosts.py
	@OMP_NUM_THREADS=1 $(BIN)/python proof/hostile.py
	@OMP_NUM_THREADS=1 $(BIN)/python proof/soak.py
	@OMP_NUM_THREADS=1 $(BIN)/python proof/postgres.py
	@OMP_NUM_THREADS=1 $(BIN)/python experiments/continual.py --suites cifar-reduced --seeds 3 --workers 2
	@OMP_NUM_THREADS=1 $(BIN)/python experiments/season.py --seeds 3 --plot docs/pictures/season.png
	@OMP_NUM_THREADS=1 $(BIN)/python proof/tour.py

clean:           ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache
