# Everything from a bare checkout: each target first installs what is missing, once.
#
#   make demo                      set up, train on the built-in demo data, evaluate, build the index
#   make test VENV=/some/where     with the installation kept outside of the tree
#   make setup PYTHON=/usr/bin/python3.12

VENV ?= .venv
PY := $(VENV)/bin/python

# The first Python here that runs (a version manager's stand-in may not), is 3.11 to 3.14 and can make a venv.
USABLE := -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))'
PYTHON ?= $(shell for python in python3.12 python3.11 python3.13 python3.14 python3; do \
	$$python $(USABLE) 2>/dev/null && command -v $$python && break; done)

# Which FAISS: cpu, or gpu for code of your own that asks for it (raycd's own search on a GPU is torch's).
EXTRA ?= cpu

# The installation is found by what is in it, not by dates: a fresh clone that shares VENV has a newer lock of the same
# content. The stamp is written last, so an interrupted installation is taken up again.
STAMP = $(VENV)/.raycd-$(EXTRA)-$(firstword $(shell cksum < requirements.lock))

# raycd itself is not installed: the targets find it through PYTHONPATH, so that several clones can share one VENV
# (an editable installation would bind it to the last of them).
export PYTHONPATH := $(CURDIR)

# Images for containers often set it; here Ray starts process after process that would compile raycd's modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-all lint format lock wheels clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Install the pinned packages into .venv (VENV=), 2.6 GB to download, once.

$(STAMP):
	@test -n "$(PYTHON)" && $(PYTHON) $(USABLE) || { \
		echo "raycd needs Python 3.11 to 3.14 with its venv module; got: '$(PYTHON)'." >&2; \
		echo "Install it (Debian, Ubuntu: apt-get install python3 python3-venv)" >&2; \
		echo "or name one: make setup PYTHON=/path/to/python3.12" >&2; \
		exit 1; }
	@echo "Installing the pinned packages ($(EXTRA)) into $(VENV): 2.6 GB to download, 7 GB on disk (gpu: 8.5)."
	$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.raycd-*
	awk '/^# \[/ { wanted = $$2 ~ /^\[(all|dev|$(EXTRA))\]$$/ } wanted' requirements.lock > $(VENV)/requirements.txt
	$(PY) -m pip uninstall --yes faiss-cpu faiss-gpu >/dev/null 2>&1
	$(PY) -m pip install --disable-pip-version-check --require-hashes --no-deps -r $(VENV)/requirements.txt
ifneq ($(filter $(CURDIR)/%,$(abspath $(VENV))),)
	@# A VENV inside the tree belongs to it and moves with it: `$(VENV)/bin/python jobs/train.py` finds raycd as well.
	$(PY) -c 'import os, sys, sysconfig; site = sysconfig.get_path("purelib"); \
		open(os.path.join(site, "raycd.pth"), "w").write(os.path.relpath(sys.argv[1], site))' "$(CURDIR)"
endif
	touch $@

demo: setup  ## Train, evaluate and index CLIP-CD on the built-in demo data (minutes); a second run continues.
	$(PY) jobs/train.py --preset demo

serve: setup  ## Answer queries on http://127.0.0.1:8000 from what `make demo` has built.
	$(PY) serve/app.py --bundle runs/demo/bundle

# Tests start clusters of their own on this machine; those that are about the token turn it on themselves.
test test-all: export RAY_AUTH_MODE = disabled

test: lint  ## Lint, then run the tests.
	$(PY) -m pytest -n 2 --dist loadscope

test-all: lint  ## The same with the slow tests.
	$(PY) -m pytest -n 2 --dist loadscope
	$(PY) -m pytest -m slow

# mypy reads torch's and numpy's types once for all clones that share the installation, not once for each clone; its
# files are for one Python and one set of options, and it looks at what each was made of.
lint: export MYPY_CACHE_DIR = $(VENV)/.mypy_cache
lint: setup  ## Check format, lint, types and the directions of imports.
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-cache

format: setup  ## Format the code and fix what lint can fix.
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

lock:  ## Write requirements.lock anew from pyproject.toml (needs uv; ARGS=--upgrade for newer versions).
	.ci/lock $(ARGS)

# It needs pip alone; a later `make setup` goes on in the same VENV.
wheels:  ## Pack the pinned packages for a machine without network (PYTHON_VERSION=, WITHOUT=; .ci/wheels has all).
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	PYTHON=$(PY) EXTRA=$(EXTRA) .ci/wheels

clean:  ## Remove the caches of this tree; the installation and runs/ stay.
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find $(wildcard jobs raycd serve tests tune) -name __pycache__ -type d -prune -exec rm -rf {} +
