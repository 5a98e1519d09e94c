# Every target does its own set-up in .venv, from nothing but a Python 3.8 - 3.11 with venv and tkinter.
#   make test    the whole suite          make demo    a simulated complex refined in a Scipion project
#   make check   ruff, mypy, import rules, imports of all tests      make clean    removes .venv and demo_output
#   make test-lowest    the core of the suite with the oldest versions setup.py allows (tests/lowest.txt), oldest Python
#   make test-latest    the same with the newest versions, newest Python; then test-engine
#   make test-engine    the engine without Scipion, with the newest Python (3.13, 3.12, …), numpy and Numba
#   make audit          known vulnerabilities
#   make gpu-check      on a machine with an NVIDIA GPU: its tests, self-test and figures; writes docs/gpu-records/
#   make test-gpu       only the tests that need one; fails without one
#   make gpu-coverage   which test executes what runs on a GPU; needs none; writes docs/reference/gpu-coverage.md
#   make tutorial       the project of docs/tutorial       make docs-pictures  all pictures of the docs

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NAMES := python3 python3.11 python3.10 python3.9 python3.8
SUITABLE := import sys, venv, ensurepip, tkinter; sys.exit(not (3, 8) <= sys.version_info < (3, 12))
PYTHON ?= $(shell for name in $(NAMES); do $$name -c '$(SUITABLE)' 2>/dev/null && echo $$name && break; done)

.PHONY: test test-core test-lowest test-latest test-engine audit test-gpu gpu-check gpu-coverage check demo tutorial docs-pictures clean
.DEFAULT_GOAL := test

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.8 - 3.11 with venv and tkinter found (Debian/Ubuntu:" \
	  "apt-get install python3-venv python3-tk); or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# What an installation is made with; 'make test-lowest' adds a file of constraints.
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
CONSTRAINTS :=

$(INSTALLED): setup.py pyproject.toml | $(BIN)/python
	$(BIN)/python $(PIP_INSTALL) $(CONSTRAINTS) --editable '.[test]'
	touch $@

test: $(INSTALLED)
	$(BIN)/python -m pytest

# Core of the suite: files, operators, one run of the engine, Scipion's side of it.
CORE := $(addprefix tests/,io/test_files.py io/test_bad_star.py io/test_bad_mrc.py records inputs/test_excluded.py \
	run/test_cli.py model/test_pose.py model/test_ctf.py model/test_fourier.py maps/test_fsc.py maps/test_mask.py \
	kernels/test_kernels.py align/test_search.py maps/test_reconstruct.py run/test_refine.py scipion/test_plugin.py \
	scipion/test_convert.py scipion/test_protocol.py scipion/test_viewers.py)
OLDEST := python3.8 python3.9 python3.10 python3.11 python3
NEWEST := python3.11 python3.10 python3.9 python3.8 python3
first = $(shell for name in $(1); do $$name -c '$(SUITABLE)' 2>/dev/null && command -v $$name && break; done)

test-lowest:
	$(MAKE) test-core VENV=.venv-lowest PYTHON="$(call first,$(OLDEST))" CONSTRAINTS='--constraint tests/lowest.txt'

test-latest:
	rm -rf .venv-latest
	$(MAKE) test-core VENV=.venv-latest PYTHON="$(call first,$(NEWEST))"
	$(MAKE) test-engine

test-core: $(INSTALLED)
	$(BIN)/python --version
	$(BIN)/python -m pip list --disable-pip-version-check | grep -i -E '^(scipion|numpy|scipy|numba|mrcfile|emtable)'
	$(BIN)/python -m pytest $(CORE)

# The engine's own tests, where nothing of Scipion is installed.
ENGINE := $(addprefix tests/,maps model motion merge align bodies kernels records finish/test_mask_ladder.py \
	finish/test_pose_blur.py inputs/test_excluded.py io/test_files.py io/test_bad_star.py io/test_bad_mrc.py \
	run/test_refine.py run/test_cli.py run/test_cupy_engine.py run/test_on_gpu.py)
HAS_VENV := import venv, ensurepip
newest = $(shell for name in python3.13 python3.12 $(NEWEST); do $$name -c '$(HAS_VENV)' 2>/dev/null && command -v $$name \
	&& break; done)

test-engine:
	rm -rf .venv-engine
	$(newest) -m venv .venv-engine
	.venv-engine/bin/python $(PIP_INSTALL) numpy scipy numba mrcfile emtable pytest hypothesis \
	  'nvidia-cuda-nvrtc-cu12==12.9.*'
	.venv-engine/bin/python --version
	.venv-engine/bin/python -m pip list --disable-pip-version-check | grep -i -E '^(numpy|scipy|numba|mrcfile|emtable)'
	.venv-engine/bin/python -m pytest $(ENGINE)

# --strict: a package that the service does not answer for is a failure.
audit: $(INSTALLED)
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python $(PIP_INSTALL) pip-audit
	$(BIN)/python -m pip freeze --exclude-editable > .venv-audit/installed.txt
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement .venv-audit/installed.txt

test-gpu: $(INSTALLED)
	LOCALREFINE_REQUIRE_GPU=1 $(BIN)/python -m pytest -m gpu

gpu-check: $(INSTALLED)
	$(BIN)/python -m benchmarks.operators.gpu

gpu-coverage: $(INSTALLED)
	$(BIN)/python -m benchmarks.operators.gpu_coverage --write

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --collect-only --quiet >/dev/null || $(BIN)/python -m pytest --collect-only --quiet

demo: $(INSTALLED)
	$(BIN)/python -m examples.demo

tutorial: $(INSTALLED)
	$(BIN)/python -m examples.tutorial

docs-pictures: demo
	$(BIN)/python -m examples.picture demo_output docs/images/demo.png
	$(BIN)/python docs/tools/make_pictures.py

clean:
	rm -rf $(VENV) .venv-lowest .venv-latest .venv-engine .venv-audit demo_output
