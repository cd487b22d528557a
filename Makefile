# Needs Python 3.11 or newer with pip, git and make; everything else goes into .venv.
# `make` alone says what there is.

PYTHON ?= $(shell for p in python3.11 python3; do "$$p" -c "" >/dev/null 2>&1 && { command -v "$$p"; break; }; done)
# Where .venv is of another Python than the one that is named, that one has its own beside it: .venv-3.12.
version = $(shell "$(1)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
MADE := $(if $(filter command% environment%,$(origin PYTHON)),$(call version,.venv/bin/python))
VENV ?= .venv$(if $(filter-out $(MADE),$(if $(MADE),$(call version,$(PYTHON)))),-$(call version,$(PYTHON)))
BIN := $(VENV)/bin
READY := $(VENV)/ready
LIBRARIES := .venv-networks
DEMO := demo-output/membranes.ome.zarr
ARGS ?=
CHECK := tests/core $(patsubst %,tests/test_%.py,config credentials engine errors exactness familiarity planning statistics)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# Prefect reports its use to its makers through two channels, each with its own switch.
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.DEFAULT_GOAL := help
.PHONY: help venv demo check test test-cluster test-faults test-networks bench lint clean
.DELETE_ON_ERROR:

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' Makefile

venv: $(READY) ## set up .venv; does nothing where nothing changed

demo: $(READY) ## segment the membranes of a small volume, and say where to look
	$(BIN)/halotile run configs/demo.yaml
	@echo
	@echo "The output is an OME-Zarr:    $(DEMO)"
	@echo "What was done, with pictures: $(DEMO).run/report.html"
	@echo "Input beside output:          $(DEMO).run/slices.png"
	@echo
	@echo "Look at it: open the report in a browser, or the OME-Zarr in napari, Fiji or Neuroglancer; from Python:"
	@echo "    $(BIN)/python -c \"import zarr; print(zarr.open_group('$(DEMO)', mode='r').tree())\""
	@echo "Run 'make demo' again: nothing is left to compute. Interrupt it: the next run takes up where it was."
	@echo "Next: copy configs/demo.yaml (configs/example.yaml explains every key), name your volume and checkpoint in it,"
	@echo "and run:"
	@echo "    $(BIN)/halotile run YOUR.yaml"

check: lint ## lint, then what starts no process and no server, in two minutes; ARGS as of test
	$(BIN)/python -m pytest -n auto --dist worksteal --part check $(CHECK) $(ARGS)

test: lint ## lint, then all tests, a process a core; ARGS="-k grid" reaches pytest, -n0 is one process
	sh tests/suite.sh $(BIN)/python $(ARGS)

test-cluster: $(READY) ## tests on real servers, as root on Debian: SLURM, S3, Prefect, cut networks; ARGS as above
	bash tests/sites/side_by_side.sh $(BIN)/python $(ARGS)

test-faults: $(READY) ## campaigns of damage, kills and failing storage, in an hour or so; ARGS as above
	$(BIN)/python -m pytest -m fault $(ARGS)

test-networks: $(READY) $(LIBRARIES)/ready ## networks made anew by their libraries, in ten minutes; writes docs/networks.md; ARGS as above
	rm -rf build/networks
	$(LIBRARIES)/bin/python -m tests.networks.make build/networks
	$(BIN)/python -m pytest -m network $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m tests.networks.table)

bench: $(READY) ## compare with one whole pass and with others; writes docs/benchmarks.md, in half an hour
	$(BIN)/python -m pip install -qq -c deploy/constraints.txt -e '.[bench]'
	$(BIN)/python -m tests.benchmarks.compare $(ARGS)

lint: $(READY) ## ruff (format and rules), the import contracts, and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

clean: ## remove .venv, the caches and the demo's output
	rm -rf .venv .venv-* demo-output build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Where Python comes without ensurepip (Debian without python3-venv), its own pip sets up the environment's.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No python3 found. Install Python 3.11, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is $$("$(PYTHON)" -V), but 3.11 or newer is needed; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "$(PYTHON) -m venv $(VENV)"
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV) && "$(PYTHON)" -m venv --without-pip $(VENV) && \
	    "$(PYTHON)" -m pip --python $(BIN)/python install pip; } || { rm -rf $(VENV); exit 1; }

# The new pip comes first: it resolves faster, and pins what builds the package too (--build-constraint).
$(READY): pyproject.toml deploy/constraints.txt deploy/install-torch.sh | $(BIN)/python
	@echo "Setting up $(VENV): one to three minutes the first time, seconds after that."
	$(BIN)/python -m pip install -qq -c deploy/constraints.txt pip
	sh deploy/install-torch.sh $(BIN)/python
	$(BIN)/python -m pip install -qq -c deploy/constraints.txt --build-constraint deploy/constraints.txt -e '.[test,train]'
	@touch $@

# Libraries come without what they ask for: of readers, trainers and viewers their networks need nothing.
$(LIBRARIES)/ready: tests/networks/libraries.txt deploy/constraints.txt deploy/install-torch.sh | $(BIN)/python
	@echo "Setting up $(LIBRARIES), once."
	$(BIN)/python -m venv --without-pip --clear $(LIBRARIES)
	$(BIN)/python -m pip --python $(LIBRARIES)/bin/python install -qq -c deploy/constraints.txt pip
	sh deploy/install-torch.sh $(LIBRARIES)/bin/python
	$(LIBRARIES)/bin/python -m pip install -qq --no-deps -r tests/networks/libraries.txt
	$(LIBRARIES)/bin/python -m pip install -qq -c deploy/constraints.txt \
	    einops filelock fsspec httpx numpy packaging PyYAML safetensors scikit-image setuptools sympy tqdm typing_extensions networkx jinja2
	@touch $@
