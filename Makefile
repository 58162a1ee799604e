# A new clone needs no more than `make bench` and `make test`: both run in .venv, which the first of them makes.
#   make test PYTHON=python3.12     which interpreter (3.10 or later) makes .venv; one that is there already stays

PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
# The stamps carry a checksum of what they were installed from: a second run installs nothing, an edit of either file does.
KEY := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
BASE := $(VENV)/.zpipe-base-$(KEY)
DEV := $(VENV)/.zpipe-dev-$(KEY)
TRAIN := $(VENV)/.zpipe-train-$(KEY)
INSTALL := -m pip --disable-pip-version-check install -qq --constraint constraints.txt

# The protocol's tests also run on these, where they exist; .venv's own version runs everything.
MATRIX := 3.10 3.12 3.13
MATRIX_TESTS := $(wildcard tests/policy tests/wire tests/transport)
# A file's tests stay together: they share what its fixtures made, and what they start does not meet itself.
WORKERS := --numprocesses logical --maxprocesses 4 --dist loadfile
# Without the property tests: these take a minute, and `make test` runs them anyway.
QUICK_TESTS := tests/test_architecture.py $(wildcard tests/policy tests/wire) -k "not properties"

# 300 processes are started in the tests: compiling zpipe in each of them is a fifth of what they cost.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help bench bench-micro test check static quick slow wheel clean $(MATRIX:%=test-%)

help:
	@echo "make bench   a line of four nodes classifies real images"
	@echo "make bench-micro   the micro-benchmarks against their last recorded figures; RECORD=1 records new ones"
	@echo "make test    the fast tests; the protocol's also on Python $(MATRIX) where these exist"
	@echo "make check   ruff, mypy, import-linter, the quickest tests"
	@echo "make slow    the tests marked slow or strict, within 10 minutes, and those of training and of torch (installs it)"
	@echo "make wheel   build dist/zpipe-*.whl"
	@echo "make clean   remove everything these made"

bench: $(BASE)
	$(BIN)/zpipe bench --topology line4.yaml

bench-micro: $(DEV)
	$(BIN)/python -m bench.micro $(if $(RECORD),--record)

test: $(DEV)
	$(BIN)/python -m pytest $(WORKERS)
	@$(MAKE) --no-print-directory $(MATRIX:%=test-%)

check: static quick

static: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

quick: $(DEV)
	$(BIN)/python -m pytest $(WORKERS) $(QUICK_TESTS)

slow: $(TRAIN)
	$(BIN)/python -m pytest tests/models tests/executors/torch
	timeout --foreground 600 $(BIN)/python -m pytest -m "slow or strict"

wheel: $(BASE)
	rm -rf dist
	$(BIN)/python -m pip --disable-pip-version-check wheel -qq --no-deps --wheel-dir dist .
	@ls -l dist

clean:
	rm -rf .venv .venv-3.* build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find zpipe tests bench engines -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- what the above run in ---------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "zpipe needs Python 3.10 or later, found $(PYTHON): $$($(PYTHON) -V 2>&1 | head -n 1); name another, as in 'make PYTHON=python3.12 ...'" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

comma := ,
# A stamp of another key is removed first: after an edit and its undoing it would vouch for an environment that is gone.
define install
	@echo "installing $(1) into $(VENV) ..."
	@find $(VENV) -maxdepth 1 -name '.zpipe-*' ! -name '*-$(KEY)' -delete
	$(BIN)/python $(INSTALL) --editable '$(1)'
	@touch $@
endef

# Engines are built in the tests, without a GPU; there are no wheels for every machine.
define rtx
	@$(BIN)/python $(INSTALL) --editable '.[rtx]' || echo "no TensorRT for RTX for this machine: its tests skip"
endef

$(BASE): | $(BIN)/python
	$(call install,.)

$(DEV): | $(BIN)/python
	$(call install,.[dev])
	$(rtx)
	@touch $(BASE)

$(TRAIN): | $(BIN)/python
	$(call install,.[dev$(comma)train])
	$(rtx)
	@touch $(BASE) $(DEV)

# Asks each candidate its version: a pyenv shim is on the PATH even where the version behind it is not.
$(MATRIX:%=test-%): test-%:
	@[ "$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != $* ] || \
	  { echo "Python $*: is the one in $(VENV), done"; exit 0; }; \
	[ -n "$(MATRIX_TESTS)" ] || { echo "Python $*: no protocol tests found"; exit 1; }; \
	for candidate in python$* $$(ls -d $$HOME/.pyenv/versions/$*.*/bin/python 2>/dev/null); do \
	  [ "$$($$candidate -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = $* ] && found=$$candidate && break; \
	done; \
	[ -n "$$found" ] || { echo "Python $*: not found here, skipped"; exit 0; }; \
	set -e; stamp=.venv-$*/.zpipe-test-$(KEY); \
	if [ ! -e $$stamp ]; then \
	  echo "Python $*: installing into .venv-$* ..."; \
	  rm -rf .venv-$*; $$found -m venv .venv-$*; \
	  .venv-$*/bin/python $(INSTALL) --editable '.[test]'; touch $$stamp; \
	fi; \
	echo "Python $*: $(MATRIX_TESTS)"; \
	HYPOTHESIS_PROFILE=again .venv-$*/bin/python -m pytest -q -p no:cacheprovider $(WORKERS) $(MATRIX_TESTS)
