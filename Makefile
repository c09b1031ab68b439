# make demo | test | lint. Needs python3 (3.10 or later) and a package index; everything else
# goes into .venv. PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	$(BIN)/python -m model_server demo --output demo-output

test: $(VENV)/.test
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A stamp for each set of packages: a second run installs nothing.
$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) demo-output build *.egg-info
