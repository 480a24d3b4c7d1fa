# Every target makes the virtual environment it needs: on a fresh machine `make demo` and `make test` are all the set-up.
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
WORKDIR ?= workdirs/demo
ADAPT ?= workdirs/adapt
# Of the tests, on two cores: one always waits for a disk, a store or a process.
WORKERS ?= 3

.PHONY: venv demo demo-adapt test test-long test-all lint golden parity clean

venv: $(VENV)/.ready

$(VENV)/.ready: setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed: make venv PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[test,weights]'
	touch $@

demo: venv
	$(PY) -m launch.train --gin_file=runs/demo.gin --workdir=$(WORKDIR)
	@echo
	@echo 'What to look at, and what to try next:'
	@echo '  $(WORKDIR)/loss.png         the loss curve;  $(WORKDIR)/samples  has all that was infilled, step by step'
	@echo '  $(PY) -i -c "from launch import load; run = load('"'$(WORKDIR)'"')"'
	@echo '  >>> print(run.infill("for i in <X>:\n    self.<Y>\n    return <Z>\n", temperature=0.5).text)'
	@echo '  $(PY) -m launch.train --gin_file=runs/smoke/mae.gin --workdir=workdirs/mae    # the second demo: pictures, in half a minute'

TAGGING = $(PY) -m launch.train --gin_file=runs/adapt/tagging.gin --gin_param="TextRecords.tokenizer = '$(ADAPT)/base'"
METHODS = scratch full lora linear_probe
demo-adapt: venv  # pre-trains an encoder, adapts it in three ways, and puts them beside the same encoder from scratch
	$(PY) -m launch.train --gin_file=runs/adapt/base.gin --workdir=$(ADAPT)/base
	$(TAGGING) --workdir=$(ADAPT)/scratch
	$(TAGGING) --workdir=$(ADAPT)/full --init_from=$(ADAPT)/base --gin_file=adapt/full.gin
	$(TAGGING) --workdir=$(ADAPT)/lora --init_from=$(ADAPT)/base --gin_file=adapt/lora.gin --gin_param='Cosine.peak = 5e-3'
	$(TAGGING) --workdir=$(ADAPT)/linear_probe --init_from=$(ADAPT)/base --gin_file=adapt/linear_probe.gin --gin_param='Cosine.peak = 2e-2'
	@echo
	$(PY) -m launch.compare $(METHODS:%=$(ADAPT)/%) --metric=valid/accuracy,valid/macro_f1 --out=$(ADAPT)/compared
	@echo
	@echo 'What to look at, and what to try next:'
	@echo '  $(ADAPT)/compared/compare.png     the curves and the bars;  compare.csv beside it has every number and setting'
	@echo '  $(PY) -i -c "from launch import load; run = load('"'$(ADAPT)/lora'"')"'
	@echo '  >>> run.tag("for i in range ( 10 ) : print ( i )")    # (word, its kind); run.merged() is the encoder with LoRA in its weights'
	@echo '  $(PY) -m launch.sweep --gin_file=runs/adapt/tagging.gin --workdir=$(ADAPT)/more --init_from=$(ADAPT)/base \'
	@echo '      --grid=gin_file=adapt/full.gin,adapt/lora.gin --grid=TextRecords.fraction=0.003,0.03    # with ten times the labels'

PYTEST = $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
test: venv
	$(PYTEST) -m 'not slow and not long'

test-long: venv  # what takes seconds, by tests/long.txt; continuous integration runs it behind `make test`
	$(PYTEST) -m 'long and not slow'

test-all: venv  # slow tests too, compiled as a run is
	XLA_FLAGS=--xla_backend_optimization_level=3 $(PYTEST)

lint: venv
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

golden: venv  # the flat form of every run file, after a change of defaults that is meant
	$(PY) -m tests.golden.update

PARITY = .venv-parity
parity: venv  # runs the reference implementations live and writes the goldens of tests/parity
	test -x $(PARITY)/bin/python || $(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/pip install --quiet torch transformers peft open_clip_torch safetensors numpy
	$(PY) -m tests.parity.make --reference=$(PARITY)/bin/python
	$(PY) -m tests.parity.peft --reference=$(PARITY)/bin/python
	$(PY) -m tests.parity.coca --reference=$(PARITY)/bin/python

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache build *.egg-info
