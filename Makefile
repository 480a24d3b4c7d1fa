# Every target makes the virtual environment it needs: on a fresh machine `make demo` and `make test` are all the set-up.
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
WORKDIR ?= workdirs/demo

.PHONY: venv demo test test-all lint golden parity clean

venv: $(VENV)/.ready

$(VENV)/.ready: setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed: make venv PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[test,weights]'
	touch $@

demo: venv
	$(PY) -m launch.train --gin_file=runs/demo.gin --workdir=$(WORKDIR)

test: venv
	$(PY) -m pytest -n 2 --dist loadfile -m 'not slow'

test-all: venv
	$(PY) -m pytest -n 2 --dist loadfile

lint: venv
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache build *.egg-info
