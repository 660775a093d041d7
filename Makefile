# The usual errands. `make demo` and `make test` do all of their own set-up: they find a Python that
# OpenFHE's wheel loads on, make .venv and install olac there (editable). Later runs reuse it.
#
#   make demo PYTHON=/path/to/python3.10      with a Python of your choice

SHELL = /bin/sh
.SHELLFLAGS = -euc
.ONESHELL:
.SUFFIXES:
.DEFAULT_GOAL := help
.PHONY: help demo test lint docs docs-serve release clean venv

# mypy works in this many processes; releases before 2.0 may not read it and use one.
export MYPY_NUM_WORKERS ?= 2

PYTHON ?=
PIP_FLAGS ?= -q
# Two processes suit two cores; each takes up to 3 GB and one thread (tests/conftest.py). Each begins with half of the
# tests, in order, so that what a file sets up is shared; one that is done takes tests that the other has not begun.
# PYTEST_FLAGS=-n0 runs all in one, for a debugger.
PYTEST_FLAGS ?= -n 2 --dist worksteal

# --quick: on one Python only.
RELEASE_FLAGS ?=

BIN := .venv/bin
# Written last, once all is installed: its text is the folder and the Python that .venv is made for.
STAMP := .venv/.olac-installed

help:
	@cat <<'END'
	make demo     compile the demo's models, run them encrypted, write build/demo.json
	make test     ruff, mypy and pytest
	make lint     ruff and mypy alone
	make release  build the wheel and the source distribution, and check both on each Python that is found
	make docs     build the site to build/site; make docs-serve shows it at http://127.0.0.1:8000
	make clean    remove what was built, but for .venv
	With PYTHON=/path/to/python, .venv is made with that Python; without, .ci/find-python finds one.
	END

demo: venv
	@mkdir -p build
	$(BIN)/olac demo --output build/demo.json

# Kernels are compiled once before the tests, not by each of their processes. Where they can't be, tests say why.
test: lint
	@set -x
	$(BIN)/olac warm-up || true
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: venv
	@set -x
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

release: venv
	@$(BIN)/python .ci/release.py $(RELEASE_FLAGS)

# Nothing of the site is loaded from elsewhere (tests/docs/test_site.py).
docs: venv
	@export NO_MKDOCS_2_WARNING=1
	$(BIN)/python docs/_hooks/command_line.py
	$(BIN)/python -m mkdocs build --strict

docs-serve: venv
	@export NO_MKDOCS_2_WARNING=1
	$(BIN)/python -m mkdocs serve --dev-addr 127.0.0.1:8000

clean:
	@rm -rf build dist htmlcov olac.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -path ./.git -prune -o -name __pycache__ -type d -exec rm -rf {} +

venv:
	@export PIP_DISABLE_PIP_VERSION_CHECK=1
	installed() {
	    [ -f $(STAMP) ] && [ -z "$$(find setup.cfg pyproject.toml -newer $(STAMP))" ]
	}
	# What .venv is: the Python that it was made with, or nothing where it is missing or broken.
	have=
	if [ -f .venv/pyvenv.cfg ] && $(BIN)/python -m pip --version >/dev/null 2>&1; then
	    have=$$(readlink -f "$$(.ci/find-python $(BIN)/python 2>/dev/null)") || have=
	fi
	want=$$have
	if [ -n "$(PYTHON)" ]; then
	    python=$$(.ci/find-python "$(PYTHON)")
	    want=$$(readlink -f "$$python")
	elif [ -z "$$have" ]; then
	    python=$$(.ci/find-python)
	fi
	if [ -z "$$have" ] || [ "$$have" != "$$want" ]; then
	    if [ -e .venv ]; then echo ".venv is broken or is for another Python: making it anew"; fi
	    rm -rf .venv
	    echo "making .venv with $$python"
	    "$$python" -m venv .venv
	    have=$$(readlink -f "$$python")
	fi
	place="$(CURDIR) $$have"
	if installed && [ "$$(cat $(STAMP))" = "$$place" ]; then exit 0; fi
	rm -f $(STAMP)
	free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1048576) }')
	if [ ! -d .venv/lib/python3.*/site-packages/torch ] && [ "$${free:-6}" -lt 6 ]; then
	    echo "warning: about 6 GB of disk are needed, and $$free GB are free here" >&2
	fi
	echo "installing olac and its dependencies into .venv (about 5 GB, a few minutes) ..."
	if ! PYTHONWARNINGS=ignore $(BIN)/python -m pip install $(PIP_FLAGS) -e '.[all]'; then
	    echo "error: pip could not install olac; to see all that it does: make $(MAKECMDGOALS) PIP_FLAGS=-v" >&2
	    exit 1
	fi
	# OpenFHE needs libgomp.so.1, which torch brings where the system has none.
	if ! why=$$($(BIN)/python -c 'import openfhe' 2>&1) \
	    && ! $(BIN)/python -c 'import torch, openfhe' 2>/dev/null; then
	    echo "error: OpenFHE is installed in .venv and cannot be imported:" >&2
	    printf '%s\n' "$$why" | tail -n 1 >&2
	    case $$why in *libgomp*)
	        echo "It needs libgomp.so.1 (Debian, Ubuntu: apt install libgomp1)." >&2 ;;
	    esac
	    echo ".venv is made with $$have; another Python: make $(MAKECMDGOALS) PYTHON=/path/to/python3.10" >&2
	    exit 1
	fi
	printf '%s\n' "$$place" >$(STAMP)
	echo "installed"
