# One virtual environment, .venv, with the exact versions of constraints.txt. Nothing outside this folder is changed.

PYTHON ?= python3
PYTHON310 ?= python3.10
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
EDITABLE := PYTHONWARNINGS='ignore:Editable installation' $(INSTALL) --build-constraint constraints.txt --editable

TFX := .venv-tfx
TFX_INSTALL := $(TFX)/bin/python -m pip install --quiet --constraint constraints-tfx.txt

.PHONY: help demo test test-tfx lint types clean

help:
	@echo "make demo     the whole pipeline on 100,004 real ratings: retrieve, rank, evaluate, push, look"
	@echo "make test     the whole test suite, notebooks included (one part of it: make test ARGS='-k wals')"
	@echo "make test-tfx the same pipelines as TFX's, in an environment of their own: Python 3.10, TFX 1.16, TensorFlow 2.16"
	@echo "make lint     ruff: rules and format"
	@echo "make types    mypy on the installed wheel"
	@echo "make clean    removes .venv and .venv-tfx, builds and caches; keeps runs/"
	@echo "Another Python: make demo PYTHON=python3.12"

demo: $(VENV)/.demo
	$(BIN)/shortlist run --data demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# TFX exists for Python 3.10 alone, with older TensorFlow, Arrow and protobuf: an environment of its own. What these
# versions warn of is theirs.
test-tfx: $(TFX)/.created
	TF_USE_LEGACY_KERAS=1 $(TFX)/bin/python -W ignore -m pytest -o filterwarnings= -p no:cacheprovider -rA \
		--capture=tee-sys --tb=short tests/tfx_suite.py $(ARGS)

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
	rm -rf $(VENV) $(TFX) build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache

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

$(TFX)/.created: setup.py constraints-tfx.txt
	@$(PYTHON310) -c 'import sys; sys.exit(None if sys.version_info[:2] == (3, 10) \
	else "TFX needs Python 3.10. Received: " + sys.version.split()[0] + ". Name one: make test-tfx PYTHON310=python3.10")'
	@echo "Installing shortlist and TFX with its pinned dependencies into $(TFX): about 4 GB, some minutes."
	$(PYTHON310) -m venv --clear $(TFX)
	$(TFX_INSTALL) --upgrade pip setuptools wheel
	$(TFX_INSTALL) --build-constraint constraints-tfx.txt --editable '.[demo,tfx]' hypothesis pytest pytest-timeout
	@touch $@
