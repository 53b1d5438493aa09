# nattribute: every target does its own set-up. `make` alone lists the targets.
#
#   PYTHON   the interpreter .venv is made from (3.11 or newer)
#   EXTRAS   faiss build and friends: cpu (default) or gpu, e.g. `make test EXTRAS=gpu`
#   INDEX    the index directory `make serve` serves (default: indexes/digits, built when absent)
#   PORT     where `make serve` listens on 127.0.0.1
#   IMAGES   options of docker/images.py, for all three targets, e.g. `make images IMAGES="--torch cpu --pip-config pip.conf"`

PYTHON ?= python3
EXTRAS ?= cpu
INDEX ?= indexes/digits
PORT ?= 8000
IMAGES ?=

# For the interpreter that tests the GPU kernel; a CUDA build of torch brings the version it needs.
TRITON := triton==3.9.0
# For EK-FAC in the experiments. Without dependencies: it names torchvision, which it does not import and whose usual
# wheel wants a CUDA torch.
KRONFLUENCE := kronfluence==1.0.1 einconv==0.1.0 einops==0.8.2 opt_einsum==3.4.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(EXTRAS)
SOURCES := attribution sketchstore indexer service experiments benchmarks examples tests docker

# One BLAS/OpenMP thread per test process: two test processes with two threads each fight for two cores and a small
# model's training becomes many times slower than with one thread.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest
PARALLEL := -n logical --maxprocesses=4 --dist=loadfile

.DEFAULT_GOAL := help
.PHONY: help demo experiments test test-reliability check serve images images-check format clean lint venv

## help     list the targets
help:
	@sed -n 's/^## /  make /p' $(MAKEFILE_LIST)

# The stamp makes set-up happen once and again only when a version or a dependency changes. setuptools comes first, from
# the constraints too, so that the build needs no second, unpinned environment.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "nattribute needs Python 3.11 or newer; $(PYTHON) is older. Name another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools
	$(BIN)/python -m pip install --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --constraint constraints.txt --no-build-isolation --editable '.[$(EXTRAS),text,lora,text-models,experiments,dev]'
	@test $(EXTRAS) != cpu || $(BIN)/python -m pip install --no-deps $(TRITON) || echo "no triton here: its test is skipped"
	@$(BIN)/python -m pip install --no-deps $(KRONFLUENCE) || echo "no kronfluence here: experiments leave EK-FAC out"
	@rm -f $(VENV)/.ready-*
	@touch $@

venv: $(READY)

## demo     train a model on handwritten digits, index it, serve it and ask it over HTTP
demo: $(READY)
	$(BIN)/python -m experiments.demo

## experiments  every experiment of the paper in its small size (DATA=folder of data sets), into results/small
# Two side by side with a thread each: networks this small hardly use a second one. One that fails lets the others
# finish and fails the target; started again, each continues where it stopped.
experiments: $(READY)
	@mkdir -p results/small
	@$(BIN)/python -m experiments --list | $(if $(DATA),NATTRIBUTE_DATA=$(DATA)) OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 \
		xargs -P 2 -n 1 bash -o pipefail -c '$(BIN)/python -m experiments "$$0" --size small --out results/small/"$$0" 2>&1 \
			| tee results/small/"$$0".log | sed "s/^/$$0: /"'

## test     everything: format, lint, types, import contract, all tests
test: lint
	$(PYTEST) $(PARALLEL)

## check    the same without the slow tests; three minutes on two cores
check: lint
	$(PYTEST) $(PARALLEL) -m "not gpu and not slow"

## test-reliability  the long form of tests/reliability (kills, repeats, loads) and new random examples; an hour or more
test-reliability: $(READY)
	NATTRIBUTE_RELIABILITY=long $(PYTEST) -s --hypothesis-profile=default tests/reliability tests/service/test_schemathesis.py tests/attribution tests/sketchstore

lint: $(READY)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

## serve    serve an index directory on 127.0.0.1:8000 (INDEX=…, PORT=…)
serve: $(READY)
	@test -e $(INDEX)/manifest.json || { test $(INDEX) = indexes/digits && $(BIN)/indexer build digits --out $(INDEX); }
	$(BIN)/attribution-service --index $(notdir $(INDEX))=$(INDEX) --port $(PORT)

## images   build the CPU images without a container engine or a registry (Debian's buildah, mmdebstrap, runc; root)
images:
	$(PYTHON) docker/images.py $(IMAGES) base
	$(PYTHON) docker/images.py $(IMAGES) build

## images-check  run what `make images` built under its limits: index digits, serve, ask over HTTP, stop
images-check:
	$(PYTHON) docker/images.py $(IMAGES) check

## format   rewrite the sources in the house format and apply safe lint fixes
format: $(READY)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

## clean    remove what make made (.venv, caches, demo-output); your indexes/ and results/ stay
clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist demo-output *.egg-info
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
