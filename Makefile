# make demo    set up, then make a talking video from the project's own picture and voice
# make live    set up, then serve a page on this machine that talks with you
# make test    set up, then lint, types and tests
# make test-all  the same with the slow tests and many more examples of every property
# make fuzz    thousands of damaged files and odd requests, some minutes; ARGS="--kinds wav,png --seed 7" chooses
# make package the archive of the pack for ComfyUI, in dist/
# make lint    ruff and mypy only        make format    let ruff rewrite
# make clean   remove .venv, caches and output
#
# Needs python3 (3.11 or newer) with venv, and a package index for the first setup. All paths are relative, so the
# folder may lie anywhere. PYTHON=python3.12 chooses another interpreter, ARGS="-k planner" passes words to pytest.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.PHONY: setup demo live test test-all fuzz package lint format clean

PYTHON ?= python3
RUN := .venv/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check --no-input

setup: .venv/ready

# torch comes first and alone: asked for by another package, another build of it may be chosen.
.venv/ready: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed to develop; choose one: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "Setting up .venv (about 2 GB, some minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(PIP) "$$(grep '^torch==' requirements-dev.txt)"
	@$(PIP) -r requirements-dev.txt
	@touch .venv/ready

demo: setup
	@$(RUN) -m liveavatar demo

live: setup
	@$(RUN) -m liveavatar live --vae tiny --open $(ARGS)

# Two processes; the tests of a file stay together, and so do all that start workers. One process: ARGS="-n 0"
test: lint
	$(RUN) -m pytest -n 2 --dist loadgroup $(ARGS)

test-all: lint
	$(RUN) -m pytest -n 2 --dist loadgroup -m "" --hypothesis-profile=all $(ARGS)

fuzz: setup
	$(RUN) -m tools.fuzz $(ARGS)

package: setup
	@$(RUN) -m tools.package $(ARGS)

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m tools.check_nodes

format: setup
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist output *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
