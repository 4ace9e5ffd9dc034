# Every target sets up what it needs by itself; `make` alone lists them.

.DEFAULT_GOAL := help
.PHONY: help setup demo real real-data test check report bench learn learn-real soak hardness
.DELETE_ON_ERROR:

PYTHON ?= python3
DATA ?= ../shared/data
TEST ?= closed

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# One process a GPU, a power of two so that the global batch divides; two processes without a GPU.
GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
PROCESSES ?= $(shell n=1; while [ $$((n * 2)) -le $(GPUS) ] && [ $$n -lt 8 ]; do n=$$((n * 2)); done; \
	if [ $(GPUS) -eq 0 ]; then echo 2; else echo $$n; fi)

export PYTHONUNBUFFERED := 1
# Threads that wait by spinning make small layers 15 times slower where other work shares the cores.
export OMP_WAIT_POLICY := passive

RUN := $(BIN)/python -m
PRETRAIN := $(RUN) foundation.launch $(PROCESSES) foundation.pretrain
FINETUNE := $(RUN) foundation.launch $(PROCESSES) foundation.finetune
EVALUATE := $(RUN) foundation.launch $(PROCESSES) evaluation.run

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv with everything in it

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: scanfm needs Python 3.11 or newer; name one with make PYTHON=..." >&2; exit 2; }
	@[ $(GPUS) -gt 0 ] || command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
		{ echo "error: DeepSpeed needs a C++ compiler where there is no GPU; install g++ or clang" >&2; exit 2; }
	@echo "installing into $(VENV): about 3 minutes, 7 GB"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check \
		--constraint constraints.txt --editable '.[train,evaluate,export,cluster,dev]'
	@touch $@

demo: $(READY) ## phantom scans to shards, two pretrained backbones, a supervised ceiling, and a benchmark report
	@$(RUN) shards.phantom data/phantom --overwrite
	@$(RUN) shards.build recipes/shards/demo.yaml if_changed=rebuild
	@$(PRETRAIN) recipes/pretrain/demo_mae.yaml resume.if_changed=restart
	@$(PRETRAIN) recipes/pretrain/demo_dino.yaml resume.if_changed=restart
	@$(FINETUNE) recipes/finetune/demo_labels.yaml resume.if_changed=restart
	@$(FINETUNE) recipes/finetune/demo_masks.yaml resume.if_changed=restart
	@$(EVALUATE) recipes/evaluation/demo.yaml test=$(TEST)
	@$(RUN) evaluation.report stores/demo --out reports/benchmark

real-data:
	@[ -d '$(DATA)' ] || { echo "error: no real data at $(DATA); name the folder with make real DATA=..., see README.md (Real data)" >&2; exit 2; }

real: real-data $(READY) ## the same on real scans: make real DATA=folder [TEST=open]
	@$(RUN) shards.build recipes/shards/real.yaml data_root='$(DATA)' if_changed=rebuild
	@$(RUN) shards.build recipes/shards/real_shapes.yaml data_root='$(DATA)' if_changed=rebuild
	@$(PRETRAIN) recipes/pretrain/real_mae.yaml resume.if_changed=restart
	@$(PRETRAIN) recipes/pretrain/real_dino.yaml resume.if_changed=restart
	@for recipe in masks shapes hippocampus sarcoma; do \
		$(FINETUNE) recipes/finetune/real_$$recipe.yaml data_root='$(DATA)' \
			resume.if_changed=restart || exit; \
		$(FINETUNE) recipes/finetune/real_$$recipe.yaml data_root='$(DATA)' name=real_scratch \
			begin=scratch resume.if_changed=restart || exit; \
	done
	@$(EVALUATE) recipes/evaluation/real.yaml data_root='$(DATA)' test=$(TEST)
	@$(RUN) evaluation.report stores/real --out reports/real

report: $(READY) ## the reports again, from what evaluation stored
	@found=; for store in demo real; do \
		[ -f stores/$$store/run.json ] || continue; found=1; \
		out=reports/benchmark; [ $$store = demo ] || out=reports/$$store; \
		$(RUN) evaluation.report stores/$$store --out $$out || exit; done; \
	[ -n "$$found" ] || { echo "error: nothing stored yet; run make demo or make real first" >&2; exit 2; }

test: $(READY) ## all tests on CPU, at most 10 minutes on two cores
	@DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 $(RUN) pytest -q -m 'not slow' -n 2 --dist worksteal

check: $(READY) ## linter, formatter, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(RUN) pytest -q tests/test_layers.py

bench: $(READY) ## speed of reading, building, streaming, of methods and probes, as ratios in one run
	@$(RUN) shards.bench --out reports/bench.json
	@$(RUN) foundation.bench --out reports/bench_methods.json
	@$(RUN) evaluation.bench --out reports/bench_evaluation.json

soak: $(READY) ## long proofs: faults at random moments, thousands of damaged files, planted collapses, coverage of intervals (slow)
	@DS_ACCELERATOR=cpu $(RUN) pytest -q -m slow --timeout 7200 tests/shards/test_fuzz.py \
		tests/foundation tests/evaluation tests/faults

learn: $(READY) ## what pretraining gains over random initialisation, on three fresh phantom cohorts (an hour or two)
	@for seed in 2 3 4; do \
		$(RUN) shards.phantom data/learn/$$seed/phantom --subjects 600 --seed $$seed || exit; \
		$(RUN) shards.build recipes/shards/demo.yaml name=learn data_root=data/learn/$$seed \
			out=data/learn/$$seed/shards if_changed=rebuild || exit; \
		for method in mae dino; do \
			$(RUN) foundation.pretrain recipes/pretrain/demo_$$method.yaml name=learn_$${method}_$$seed \
				shards=data/learn/$$seed/shards seed=$$seed log.wandb=false resume.if_changed=restart || exit; \
		done; \
		$(RUN) evaluation.run recipes/evaluation/learn.yaml name=learn_$$seed \
			data_root=data/learn/$$seed backbones.mae=runs/learn_mae_$$seed/backbone \
			backbones.dino=runs/learn_dino_$$seed/backbone test=$(TEST) || exit; \
	done
	@$(RUN) evaluation.claim stores/learn_2 stores/learn_3 stores/learn_4 --out reports/learn

learn-real: real-data $(READY) ## the same on real scans, three pretraining seeds (20 minutes on one core)
	@$(RUN) shards.build recipes/shards/real.yaml data_root='$(DATA)' if_changed=rebuild
	@$(RUN) shards.build recipes/shards/real_shapes.yaml data_root='$(DATA)' if_changed=rebuild
	@for seed in 0 1 2; do \
		for method in mae dino; do \
			$(RUN) foundation.pretrain recipes/pretrain/real_$$method.yaml \
				name=learn_real_$${method}_$$seed seed=$$seed log.wandb=false \
				resume.if_changed=restart || exit; \
		done; \
		$(RUN) evaluation.run recipes/evaluation/learn_real.yaml name=learn_real_$$seed \
			data_root='$(DATA)' backbones.mae=runs/learn_real_mae_$$seed/backbone \
			backbones.dino=runs/learn_real_dino_$$seed/backbone test=$(TEST) || exit; \
	done
	@$(RUN) evaluation.claim stores/learn_real_0 stores/learn_real_1 stores/learn_real_2 --out reports/learn_real

hardness: $(READY) ## the phantom diseases are there to be found, and not by intensity alone (slow)
	@DS_ACCELERATOR=cpu $(RUN) pytest -q -m slow --timeout 3600 tests/shards/test_phantom_hardness.py
