# make run and make test do all set-up on a new machine: Python 3.11 or newer and a package index are enough.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(if $(shell command -v $(p)),$(p))))
VENV ?= .venv
BIN = $(VENV)/bin
# Tests at a time; most of them compile small programs on one core.
WORKERS ?= 2
# Hundreds of processes start here: without bytecode on the disk each would translate the same modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-runs test-processes test-portable setup lint types notebooks docs map lock audit bench faults clean

run: setup
	$(BIN)/python -m scpl_jax.experiments.cifar --stages 4

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Whole training runs, for many a combination of options, and data sets prepared by TensorFlow Datasets.
test-runs: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m runs tests

# Runs of several real processes: kept apart, as each takes many seconds to start. Tests of a file share runs.
test-processes: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m processes tests

# Tests of numbers as on other processors: with and without AVX-512, by each library, on one core and on all.
test-portable: setup
	$(BIN)/python tests/portable.py

setup: $(VENV)/.ready

# The lock holds a hash for every package; the project itself needs no further download.
$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

# Notebooks and pages need packages that nothing else does.
$(VENV)/.docs-ready: $(VENV)/.ready requirements-docs.lock
	$(BIN)/python -m pip install --quiet --no-compile --require-hashes -r requirements-docs.lock
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# Runs them from their scripts and stores them with outputs.
notebooks: $(VENV)/.docs-ready
	$(BIN)/python notebooks/execute.py

# Pages in docs/build/html, with the notebooks as they are stored; a warning is an error.
docs: $(VENV)/.docs-ready
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs . docs/build/html

# The picture and the table of docs/design/architecture.md, from the imports.
map: setup
	$(BIN)/python docs/design/rooms.py

# Engine against a hand-written loop, augmentation, start-up: minutes, see docs/measurements.md.
bench: setup
	$(BIN)/python -m scpl_jax.benchmarks.overhead --output experiments/overhead/results.json

# Known vulnerabilities of every locked package; needs pip-audit, and a network to its service. A package that the
# service does not know is an error.
audit:
	pip-audit --strict --require-hashes --disable-pip -r requirements.lock
	pip-audit --strict --require-hashes --disable-pip -r requirements-docs.lock

# Choose the newest versions again; needs uv.
LOCK = uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --upgrade --python-version 3.11
lock:
	$(LOCK) --extra dev --extra tfds --output-file requirements.lock pyproject.toml
	$(LOCK) --extra docs --constraint requirements.lock --output-file requirements-docs.lock pyproject.toml

# Kill runs, damage input, train for an hour: hours, and continued where it was stopped; see docs/recovery.md.
faults: setup
	$(BIN)/python tests/faults/kills.py
	$(BIN)/python tests/faults/inputs.py
	$(BIN)/python tests/faults/soak.py

clean:
	rm -rf $(VENV) docs/build .pytest_cache .mypy_cache .ruff_cache .hypothesis
