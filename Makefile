# `make run` trains on the built-in dataset, `make test` runs the tests; both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Also for what builds the package, in newer pips by the second variable.
PINNED = PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
INSTALL = pip install --quiet --disable-pip-version-check
# Services under test wait more than they work: three workers keep two cores busy.
PYTEST = python -m pytest -n 3 --dist loadfile -m 'not slow'
# The tests start hundreds of processes: none is to compile anew what another has compiled.
export PYTHONDONTWRITEBYTECODE =
.ONESHELL:
.SHELLFLAGS = -ec

.PHONY: run test pytest site package test-all test-oldest test-newest constraints lint clean

$(VENV)/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PINNED) $(BIN)/$(INSTALL) --no-compile -e '.[dev]'
	touch $@

run: $(VENV)/.made
	$(BIN)/corrkd run --preset synthetic --out runs/synthetic --overwrite

lint: $(VENV)/.made
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: pytest lint site

pytest: $(VENV)/.compiled
	$(BIN)/$(PYTEST)

# The documentation, as build/html.
site: $(VENV)/.made
	$(BIN)/python scripts/make_site.py

# What is imported is compiled once, not by every worker at the same time: pip compiles nothing.
$(VENV)/.compiled: $(VENV)/.made
	$(BIN)/python -m pytest --collect-only -qq >/dev/null || true
	touch $@

# Wheel and sdist in dist/, each tried in an environment that has what they need and nothing else of this folder.
package: $(VENV)/.made
	rm -rf dist build/package
	$(PINNED) $(BIN)/python -m build --outdir dist . >/dev/null
	$(BIN)/twine check --strict dist/*
	for file in $$PWD/dist/*; do
	  $(BIN)/python -m venv --clear build/package
	  $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >$$(build/package/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/needed.pth
	  $(PINNED) build/package/bin/$(INSTALL) --no-deps "$$file"
	  (cd build/package && bin/python ../../.ci/installed.py)
	done

test-all: lint site package
	$(PINNED) $(BIN)/$(INSTALL) -e '.[dev,cluster]'
	$(BIN)/pytest

# What pyproject.toml names at its lowest versions, what tests it as pinned; all else at the newest that fits.
test-oldest:
	rm -rf build/oldest
	$(PYTHON) -m venv build/oldest
	$(PYTHON) .ci/lowest.py >build/oldest/lowest.txt
	PIP_CONSTRAINT=build/oldest/lowest.txt build/oldest/bin/$(INSTALL) -e '.[test,cluster]'
	build/oldest/bin/$(PYTEST)

test-newest:
	rm -rf build/newest
	$(PYTHON) -m venv build/newest
	build/newest/bin/$(INSTALL) -e '.[test,cluster]'
	build/newest/bin/$(PYTEST)

# Pins all that `make test-all` installs, and what builds the package, at the newest versions; torch stays as it is pinned.
constraints:
	rm -rf build/pinned
	$(PYTHON) -m venv build/pinned
	build/pinned/bin/$(INSTALL) "$$(grep ^torch== constraints.txt)" -e '.[dev,cluster]' hatchling editables
	build/pinned/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' >build/pinned/constraints.txt
	(sed -n '/^#/p' constraints.txt; cat build/pinned/constraints.txt) >build/pinned/all.txt
	mv build/pinned/all.txt constraints.txt

clean:
	rm -rf $(VENV) build dist
