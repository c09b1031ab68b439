# make demo | browser | test | lint. Needs python3 (3.10 or later) and a package index; everything
# else goes into .venv. PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo browser test lint tutorial clean

demo: $(VENV)/.demo
	$(BIN)/python -m model_server demo --output demo-output
	@echo "To draw it yourself in the browser: make browser"

# 3D Slicer's views in the browser; on Linux without a display: apt-get install libegl1
# libgl1-mesa-dri.
browser: $(VENV)/.browser
	PYTHONPATH=ShapePriorSlicer $(BIN)/python -m ShapePriorBrowser

test: $(VENV)/.test
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The pictures of the documentation.
tutorial: $(VENV)/.test
	PYTHONPATH=ShapePriorSlicer:. $(BIN)/python Testing/make_tutorial.py
	PYTHONPATH=ShapePriorSlicer:. $(BIN)/python Testing/make_panel_picture.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A stamp for each set of packages: a second run installs nothing.
$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

$(VENV)/.browser: $(VENV)/.demo
	$(PIP) --editable '.[browser]'
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) demo-output build *.egg-info
