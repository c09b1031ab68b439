# make demo | browser | test | lint. Needs python3 (3.10 or later) and a package index; everything
# else goes into .venv. PYTHON=python3.12 chooses another interpreter, TORCH=cuda PyTorch for a GPU.
# Without make: python Resources/set_up.py demo | browser | test.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= cpu
BIN := $(VENV)/bin
SET_UP := $(PYTHON) Resources/set_up.py --venv $(VENV) --torch $(TORCH) --only-install

.PHONY: demo browser test lint tutorial clean always

demo: $(VENV)/.demo
	$(BIN)/python -m model_server demo --output demo-output
	@echo "Next, drawn by yourself in the browser: make browser"

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

# A set of packages; a second run installs only what changed.
$(VENV)/.demo $(VENV)/.browser $(VENV)/.test: always
	@$(SET_UP) $(subst .,,$(notdir $@))

clean:
	rm -rf $(VENV) demo-output build *.egg-info
