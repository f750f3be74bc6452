# Everything runs in .venv, which is made on first use; the plain commands are in README.md.
PYTHON ?= python3
VENV ?= .venv
PRESET ?= quick
ARGS ?=

# glibc returns large blocks to the system after each training step and asks for them again in the next; these make it
# keep them. Other C libraries ignore them.
export MALLOC_MMAP_THRESHOLD_ ?= 10000000000
export MALLOC_TRIM_THRESHOLD_ ?= 10000000000

.PHONY: imdb test check clean

imdb: $(VENV)/.imdb
	$(VENV)/bin/python -m examples.imdb --preset $(PRESET) $(ARGS)

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n 2

check: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python tests/typed_use.py
	$(VENV)/bin/lint-imports

$(VENV)/.imdb: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e '.[imdb]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e '.[imdb,dev]'
	touch $@ $(VENV)/.imdb

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
