# Everything runs inside .venv, made on first use from pyproject.toml and constraints.txt; a second run installs nothing.
#
#   make demo    a photo through the whole pipeline, with the small trained model that comes along, into out/demo
#   make test    lint, format check and all tests
#   make bench   the benchmarks of layers; those of whole models (slat, components, decoders, pipeline) take up to an hour each
#   make env     the environment of tests and benchmarks alone

PYTHON ?= python3
TEST_FLAGS ?=
BIN := .venv/bin
# Byte code is written for what is imported, not for all of torch.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

.PHONY: env demo test lint bench clean

env: .venv/.test

# Stamps are written last: an installation that was interrupted is taken up again.
.venv/.python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed; name one by PYTHON=...")'
	$(PYTHON) -m venv .venv
	touch $@

# What compiling and running models needs: TVM, and torch, from which half of them are exported.
.venv/.demo: .venv/.python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[torch]'
	touch $@

# What tests and benchmarks need beyond it.
.venv/.test: .venv/.demo
	$(INSTALL) --editable '.[test]'
	touch $@

demo: .venv/.demo
	$(BIN)/sam3d-tvm demo -o out/demo

test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations=10 $(TEST_FLAGS)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: env
	$(BIN)/python -m benchmarks.sparse_conv
	$(BIN)/python -m benchmarks.dense
	$(BIN)/python -m benchmarks.attention

# Leaves .venv alone: remove it by hand to start over.
clean:
	rm -rf out build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +
