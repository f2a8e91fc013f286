# `make demo` and `make test` work on a fresh clone: each sets up .venv first and does so once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TYPING := build/typing
CLIENTS := build/clients

# ONNX Runtime's wheels otherwise write a telemetry store under the home directory.
export ORT_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Arguments for pytest, for example: make test PYTEST_ARGS="tests/test_house.py -x"
PYTEST_ARGS ?=

.PHONY: help install clients demo test image lint format lock clean
.DEFAULT_GOAL := help

help: ## Print this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1|\2/p' Makefile | while IFS='|' read -r name what; do printf '%-14s %s\n' "$$name" "$$what"; done

install: $(STAMP) ## Set up .venv from requirements.lock

# The lock and the project file are what the environment is made from: it is brought up to date when either changes.
$(STAMP): requirements.lock pyproject.toml
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  command -v $(PYTHON) >/dev/null || { \
	    echo "error: $(PYTHON) was not found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: got $$($(PYTHON) --version 2>&1), wanted Python 3.11 or newer. Name another: make PYTHON=python3.11" >&2; exit 1; }; \
	  echo "setting up $(VENV); several gigabytes, once"; \
	  $(PYTHON) -m venv --clear $(VENV) || { \
	    echo "error: $(PYTHON) could not make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }; \
	fi
	@echo "installing the packages of requirements.lock; minutes"
	@$(BIN)/python -m pip install --requirement requirements.lock
	@echo "installing fimaq-tool itself"
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

clients: $(CLIENTS)/.installed ## Set up what the server's tests call it with: clients that others wrote

$(CLIENTS)/.installed: tests/serve/clients/requirements.txt
	@$(PYTHON) -m venv --clear $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install --quiet --requirement $<
	@touch $@

# One thread: many small products on threads that wait for each other are several times slower where cores are shared.
demo: $(STAMP) ## Quantize, export and evaluate the bundled models
	@OMP_NUM_THREADS=1 $(BIN)/fimaq-tool demo -o fimaq-demo --force

test: lint clients ## Lint, then run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

image: $(STAMP) ## Build the server's image, try it and throw it away; skipped without root, buildah or debootstrap
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/test_image.py

# mypy cannot follow the import hook of an editable install that renames packages: it reads them through links.
lint: $(STAMP) ## Check style, types and the direction of imports
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "error: the files above are not formatted. Run: make format" >&2; exit 1; }
	@mkdir -p $(TYPING)/fimaq
	@for part in toolchain cli deploy; do ln -sfn ../../../$$part $(TYPING)/fimaq/$$part; done
	@MYPYPATH=$(TYPING) $(BIN)/mypy -p fimaq.toolchain -p fimaq.cli -p fimaq.deploy
	@$(BIN)/lint-imports --no-logo

format: $(STAMP) ## Rewrite the sources in the project's style
	@$(BIN)/ruff check --quiet --fix --exit-zero .
	@$(BIN)/ruff format .

# A throw-away environment, so that only what pyproject.toml asks for is pinned. torch pins its own CUDA packages, and
# another build of torch (CPU, macOS, ARM) needs others or none, so those are left to it.
lock: ## Pin the newest versions pyproject.toml allows, and those of the server's image
	@mkdir -p build && rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip install --quiet --editable '.[dev,otel,serve]'
	@{ sed '/^#/!d' requirements.lock; \
	   build/lock/bin/python -m pip freeze --all --exclude-editable --exclude pip --local | grep -vE '^(cuda-|nvidia-|triton==)'; \
	 } > build/requirements.lock
	@! grep -E '@|^-' build/requirements.lock || { echo "error: the lines above are not plain pins; requirements.lock is as it was" >&2; exit 1; }
	@mv build/requirements.lock requirements.lock && rm -rf build/lock
	@rm -rf build/lock-serve && $(PYTHON) -m venv build/lock-serve
	@build/lock-serve/bin/python -m pip install --quiet --requirement requirements-serve.in --constraint requirements.lock \
	   "onnxruntime==$$(sed -n 's/^onnxruntime-gpu==//p' requirements.lock)"
	@{ sed '/^#/!d' requirements-serve.lock; \
	   build/lock-serve/bin/python -m pip freeze --all --local --exclude pip --exclude setuptools; \
	 } > build/requirements-serve.lock
	@mv build/requirements-serve.lock requirements-serve.lock && rm -rf build/lock-serve
	@echo "requirements.lock and requirements-serve.lock are new. Run: make test"

clean: ## Remove everything that was made, .venv included
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
