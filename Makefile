# kvfs: `make install`, `make up`, `make test`; see docs/cli.md and README.md.

# Debian's own interpreter first: the headers that pyfuse3 is built with come from the same packages.
PYTHON ?= $(shell command -v /usr/bin/python3 || command -v python3)
VENV ?= .venv
ENGINES_VENV ?= .venv-engines
CLIENTS_VENV ?= .venv-clients
BIN = $(VENV)/bin

STORE ?= ./var/store
MOUNT ?= /mnt/kvfs
LISTEN ?= 127.0.0.1:9000
ENGINE_LISTEN ?= 127.0.0.1:9001

# Folders come and go while the project grows; what is there is run.
SUITES = $(wildcard tests/unit tests/property tests/contract tests/crash tests/integration)
CODE = $(wildcard kvfs gateway tools tests bench)
PYTEST = $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install install-engines install-clients system up lint types test test-engines soak bench clean

help:
	@echo "make install        packages (as root) and $(VENV) with all that mount, gateway, gc and tests need"
	@echo "make up             store, mount and gateway on this machine, until Ctrl-C"
	@echo "                    STORE=$(STORE) MOUNT=$(MOUNT) LISTEN=$(LISTEN) ENGINE_LISTEN=$(ENGINE_LISTEN)"
	@echo "make test           lint, types, unit, property, contract, crash (bounded), integration"
	@echo "make test-engines   the real engines and everyday S3 clients against mount and gateway"
	@echo "make soak           the long runs (crash, churn)"
	@echo "make bench          the benchmarks, one JSON line a case"

system:
	@tools/install-system-packages

install: system $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade "pip>=24.2"
	$(BIN)/python -m pip install -qq --editable ".[fuse,gateway,tier,test]"
	@touch $@

install-engines: install $(ENGINES_VENV)/.installed

# An own environment: the engines bring torch and a hundred packages that kvfs must not lean on.
ENGINES_PYTHON = $(ENGINES_VENV)/bin/python
$(ENGINES_VENV)/.installed: pyproject.toml $(addprefix tests/engines/,requirements.txt engines.txt unpack_engines.py no_cuda.c)
	$(PYTHON) -m venv $(ENGINES_VENV)
	$(ENGINES_PYTHON) -m pip install -qq --upgrade "pip>=24.2"
	$(ENGINES_PYTHON) -m pip install -qq torch==2.13.0
	$(ENGINES_PYTHON) -m pip install -qq --requirement tests/engines/requirements.txt
	$(ENGINES_PYTHON) -m pip install -qq --no-deps --requirement tests/engines/engines.txt
	$(ENGINES_PYTHON) tests/engines/unpack_engines.py
	@touch $@

install-clients: install $(CLIENTS_VENV)/.installed

$(CLIENTS_VENV)/.installed: tests/engines/clients/requirements.txt
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/python -m pip install -qq --upgrade "pip>=24.2"
	$(CLIENTS_VENV)/bin/python -m pip install -qq --requirement $<
	@touch $@

up: install
	$(BIN)/kvfs up $(STORE) --mount $(MOUNT) --listen $(LISTEN) --engine-listen $(ENGINE_LISTEN)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell $(CODE) $(wildcard *.md docs)

types: install
	$(BIN)/mypy --strict

test: lint types
	$(PYTEST) $(SUITES)

test-engines: install-engines install-clients
	$(PYTEST) -o faulthandler_timeout=240 tests/engines

soak: install
	$(PYTEST) --soak -m soak -o faulthandler_timeout=0 $(SUITES) tests/engines

bench: install
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) $(ENGINES_VENV) $(CLIENTS_VENV) build *.egg-info .mypy_cache .ruff_cache .hypothesis
