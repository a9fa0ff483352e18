# One virtual environment, .venv, with the exact versions of constraints.txt. Nothing outside this folder is changed.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
EDITABLE := PYTHONWARNINGS='ignore:Editable installation' $(INSTALL) --build-constraint constraints.txt --editable

.PHONY: help demo test lint types clean

help:
	@echo "make demo     the whole pipeline on 100,004 real ratings: retrieve, rank, evaluate, push, look"
	@echo "make test     the whole test suite, notebooks included (one part of it: make test ARGS='-k wals')"
	@echo "make lint     ruff: rules and format"
	@echo "make types    mypy on the installed wheel"
	@echo "make clean    removes .venv, builds and caches; keeps runs/"
	@echo "Another Python: make demo PYTHON=python3.12"

demo: $(VENV)/.demo
	$(BIN)/shortlist run --data demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow the import hook of an editable install, so it reads the wheel, unpacked as pip installs it.
# build/ is emptied first: setuptools would put modules that are gone from the sources back into the wheel.
types: $(VENV)/.dev
	rm -rf build
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(BIN)/python -m pip install --quiet --no-deps --target build/types build/wheel/*.whl
	MYPYPATH=build/types $(BIN)/mypy --package shortlist

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; found = sys.version.split()[0]; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) \
	else "Shortlist needs Python 3.11, 3.12 or 3.13. Received: " + found + ". Name one: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(INSTALL) --upgrade pip setuptools wheel
	@touch $@

$(VENV)/.demo: $(VENV)/.created setup.py constraints.txt
	@echo "Installing shortlist and its pinned dependencies into $(VENV): about 3 GB, some minutes the first time."
	$(EDITABLE) '.[demo,serve]'
	@touch $@

$(VENV)/.dev: $(VENV)/.created setup.py constraints.txt
	@echo "Installing shortlist, its pinned dependencies and the tools into $(VENV): some minutes the first time."
	$(EDITABLE) '.[demo,serve,dev]'
	@touch $(VENV)/.demo $@
