# Everything runs in .venv. `make setup` creates it; the other targets create it as far as they need it.

comma := ,
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON := $(shell command -v python3)# Python 3.11 to 3.13, for making .venv
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.installed# extras pipeline and serve
WHOLE := $(VENV)/.installed-extras# all extras
# An import compiles what the stages and commands need; pip would compile six times as many files, on one core.
COMPILED := 'import steermoe.training.train, steermoe.evaluation.evaluator, steermoe.cli.main'

# The build of torch. Empty: the one of constraints.txt, for the CPU; where your package index lacks it, point pip to
# PyTorch's index of CPU builds (PIP_EXTRA_INDEX_URL; its address is on PyTorch's install page).
# `make setup TORCH=2.13.0` takes the index' own build instead, which has CUDA on PyPI. The choice is remembered;
# `make setup TORCH=` takes it back.
CHOSEN := $(shell cat $(READY) 2>/dev/null)
TORCH ?= $(CHOSEN)
PROFILE ?=
OPTIONS ?=# of `make own`, such as --language en

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup repro table ablations profile own ui flows flows-stop test lint clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(WHOLE) ## make .venv with the exact versions of constraints.txt (TORCH=2.13.0: with the index' own torch)

repro: $(READY) ## train, evaluate and compare the selected variants, and print the comparison; runs only what changed
	@git rev-parse --git-dir >/dev/null 2>&1 || dvc config --local core.no_scm true # an unpacked archive
	dvc repro
	$(PY) -m pipeline show

table: $(READY) ## score the small adapters of the repository on real speech, and print the comparison; no training
	$(PY) -m pipeline table

ablations: $(READY) ## select every variant of params.yaml (it stays so), and repro
	$(PY) -m pipeline profile --compare '*'
	$(MAKE) repro

profile: $(READY) ## select a profile: make profile PROFILE=mini
	$(PY) -m pipeline profile $(PROFILE)

own: $(READY) ## write a profile for your recordings: make own NAME=mine FOLDER=path (docs/own-data.md)
	$(PY) -m pipeline own "$(NAME)" "$(FOLDER)" $(OPTIONS)

ui: $(READY) ## look at the runs in MLflow, in a browser
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --backend-store-uri sqlite:///mlflow.db --workers 1

flows: $(WHOLE) ## start Prefect: server, deployments and a worker (docs/scale.md)
	$(PY) -m flows start $(if $(JOIN),--join)

flows-stop: $(WHOLE) ## stop them; what runs goes on after the next start
	$(PY) -m flows stop

test: $(WHOLE) ## the whole test suite
	OMP_NUM_THREADS=1 $(PY) -m pytest -q --numprocesses 2 --dist loadfile

lint: $(WHOLE) ## ruff, pyright, and vulture for dead code
	ruff check
	ruff format --check
	pyright
	vulture

clean: ## remove what the pipeline made; .venv and DVC's cache stay
	rm -rf data models reports .runs mlartifacts mlruns mlflow.db*

ifneq ($(TORCH),$(CHOSEN))
.PHONY: $(READY) $(WHOLE)
endif

# $(1): the extras of pyproject.toml. Without torch's removal pip would take 2.13.0+cpu for 2.13.0.
define install
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	cp constraints.txt $(VENV)/constraints.txt
	$(if $(TORCH),sed -i 's/^torch==.*/torch==$(TORCH)/' $(VENV)/constraints.txt)
	$(if $(TORCH),$(PY) -m pip uninstall --quiet --yes torch)
	$(PY) -m pip install --no-compile --constraint $(VENV)/constraints.txt --editable '.$(1)' | sed '/already satisfied/d' \
		|| { echo 'If torch was not found, see "The build of torch" in the Makefile.'; exit 1; }
	env -u PYTHONDONTWRITEBYTECODE $(PY) -c $(COMPILED)
	echo '$(TORCH)' > $(READY)
endef

$(READY): pyproject.toml constraints.txt
	$(call install,[pipeline$(comma)serve])

$(WHOLE): pyproject.toml constraints.txt
	$(call install,[dev])
	touch $(WHOLE)
