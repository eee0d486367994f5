# Everything a newcomer types. `make` alone lists the commands.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# The data folder of the mesh that the commands below start; `argosy` by itself uses ~/.local/share/argosy.
export ARGOSY_HOME ?= $(CURDIR)/build/home
# Nothing phones home, and nothing is looked up on a model hub.
export HF_HUB_OFFLINE := 1
export VLLM_NO_USAGE_STATS := 1
export RAY_USAGE_STATS_ENABLED := 0
export ORT_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1

# Where this is set, every process of the mesh and of the tests compiles all our code again: a third of a start.
unexport PYTHONDONTWRITEBYTECODE

# Where HOME is not that of the account (a bare environment, sudo), pip would miss the package source of the account.
ifndef PIP_CONFIG_FILE
export PIP_CONFIG_FILE := $(wildcard $(shell getent passwd $$(id -u) | cut -d: -f6)/.config/pip/pip.conf)
endif

PROTOS := $(shell find protos -name '*.proto')
INSTALLED := $(VENV)/.installed
EDITABLE := $(VENV)/.editable
STUBS := build/protos/argosy.binpb
UNIT_LARGE := tests/unit/dataset tests/unit/common tests/unit/argosy
# Three at a time, file by file, as they wait for others a good part of their time; those of few long tests first, so that
# none is left over at the end.
TESTS_LONG := tests/integration/training tests/integration/deploy
TESTS_SPREAD := $(TESTS_LONG) $(filter-out $(TESTS_LONG) %__pycache__,$(wildcard tests/integration/*)) tests/security tests/fuzz

.PHONY: help setup check test test-e2e test-chaos chaos demo up down status logs doctor bench bench-rpc bench-gateway bench-dedup bench-import bench-clean bench-paging bench-annotate \
	bench-train bench-train-gpu bench-metrics bench-mlflow bench-hpo bench-automl bench-estimates bench-tokenize fmt notices clean prerequisites check-format \
	check-lint check-types check-protos check-imports check-unit \
	check-unit-dataset check-unit-common check-unit-argosy check-contract

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STUBS) ## make .venv, install everything that is locked, generate the stubs

demo: setup ## install, run the main job from raw text to a served, watched model; leave it running
	@$(BIN)/python -m deploy.demo

test: check ## every test that CI runs
	$(BIN)/python -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder --durations=25 $(TESTS_SPREAD)
	@$(MAKE) -j2 --output-sync=target test-e2e test-chaos

# Each on a mesh of its own, beside each other.
test-e2e test-chaos:
	$(BIN)/python -m pytest --durations=25 $(@:test-%=tests/%)

chaos: setup ## the full main job while everything is killed in turn; ARGOSY_CHAOS_SEED repeats a run
	ARGOSY_CHAOS=full $(BIN)/python -m pytest tests/chaos -s

check: setup ## format, lint, types, contracts, imports, unit tests; under a minute
	@$(MAKE) -j5 --output-sync=target check-unit-dataset check-unit check-unit-argosy check-unit-common check-types check-contract \
		check-format check-lint check-protos check-imports

check-format:
	$(BIN)/ruff format --check --quiet .

check-lint:
	$(BIN)/ruff check --quiet .

check-types:
	$(BIN)/pyrefly check

check-protos:
	$(BIN)/buf lint $(STUBS) --path argosy
	if [ -f protos/baseline.binpb ]; then $(BIN)/buf breaking $(STUBS) --against protos/baseline.binpb --path argosy; fi

check-imports:
	$(BIN)/lint-imports --no-cache

check-unit:
	$(BIN)/python -m pytest tests/unit $(addprefix --ignore=,$(UNIT_LARGE))

check-unit-dataset check-unit-common check-unit-argosy:
	$(BIN)/python -m pytest tests/unit/$(@:check-unit-%=%)

check-contract:
	$(BIN)/python -m pytest tests/contract

up: setup ## start the mesh and leave it running
	@$(BIN)/argosy up

down: ## stop everything that `make up` or `make demo` started, and nothing else
	@if [ -x $(BIN)/argosy ]; then $(BIN)/argosy down; else echo "nothing is installed, so nothing runs"; fi

status: setup ## what runs, and how it is
	@$(BIN)/argosy status

logs: setup ## follow the logs of all processes
	@$(BIN)/argosy logs --follow

doctor: setup ## what is missing on this machine, and how to get it
	@$(BIN)/argosy doctor

bench: bench-rpc bench-gateway bench-dedup bench-import bench-clean bench-paging bench-annotate bench-train bench-metrics bench-mlflow bench-hpo bench-automl bench-estimates bench-tokenize ## all benchmarks, into build/bench

bench-rpc: setup ## echo through the interceptor chain against bare grpc.aio
	$(BIN)/python -m tests.bench.rpc

bench-gateway: setup ## chat through the gateway against LiteLLM's proxy
	$(BIN)/python -m tests.bench.gateway

bench-dedup: setup ## signatures of near-duplicates against datasketch
	$(BIN)/python -m tests.bench.dedup

bench-import: setup ## a million rows of JSONL into a version, beside polars
	$(BIN)/python -m tests.bench.import_rows

bench-clean: setup ## cleaning by recipes against datatrove and Data-Juicer
	$(BIN)/python -m tests.bench.clean

bench-paging: setup ## lists, searches, pages of rows and items of work at size
	$(BIN)/python -m tests.bench.paging

bench-annotate: setup ## the built-in detector on pairs it never saw, against colour and contour rules
	$(BIN)/python -m tests.bench.annotate

bench-train: setup ## fine-tuning beside a plain PyTorch loop and TRL
	$(BIN)/python -m tests.bench.train

bench-metrics: setup ## points of metrics a second, curves and pages of runs, beside MLflow's own store
	$(BIN)/python -m tests.bench.metrics

bench-train-gpu: setup ## model FLOP utilisation of a Llama with a billion parameters; needs a CUDA GPU
	$(BIN)/python -m tests.bench.train_gpu

bench-mlflow: setup ## points a second of MLflow's client through the gateway, beside MLflow's server
	$(BIN)/python -m tests.bench.mlflow_door

bench-hpo: setup ## trials that our search needs for what grid search finds
	$(BIN)/python -m tests.bench.hpo

bench-automl: setup ## AutoML beside FLAML: quality in the same seconds
	$(BIN)/python -m tests.bench.automl

bench-estimates: setup ## time and memory that the pre-flight predicts for ten recipes, beside what they take
	$(BIN)/python -m tests.bench.estimates

bench-tokenize: setup ## rows to token arrays beside datasets.map
	$(BIN)/python -m tests.bench.tokenize_rows

fmt: setup ## format the code and repair what the linter can
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

notices: setup ## write THIRD_PARTY.md from the lock
	$(BIN)/python -m deploy.local.notices

clean: ## stop the mesh and remove all that was generated, .venv and the mesh's data included
	@$(MAKE) down
	rm -rf build $(VENV) libs/argosy/*/v1 libs/argosy/buf

# How setup works: one stamp a step, so that a second run only compares times.
prerequisites:
	@PYTHON="$(PYTHON)" sh deploy/local/prerequisites.sh

$(INSTALLED): requirements/lock.txt requirements/llm.txt
	@PYTHON="$(PYTHON)" sh deploy/local/prerequisites.sh
	@[ -x $(BIN)/python ] || { echo "[setup] creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "[setup] installing $$(cat requirements/lock.txt requirements/llm.txt | grep -c '==') locked packages (minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --no-compile \
		-r requirements/lock.txt -r requirements/llm.txt || { $(BIN)/python deploy/local/after_install.py --failed; exit 1; }
	@$(BIN)/python deploy/local/after_install.py
	@touch $@

$(EDITABLE): $(INSTALLED) pyproject.toml
	@echo "[setup] linking this checkout into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(STUBS): $(EDITABLE) protos/generate.py $(PROTOS)
	@echo "[setup] generating stubs from $(words $(PROTOS)) contracts"
	@$(BIN)/python protos/generate.py
	@touch $@
