# make demo, make test, make check; `make` alone lists the targets.

PYTHON ?= python3
BIN := .venv/bin
SEEDS ?= 5
METHODS ?= seq,ind
STRATEGIES ?= glob(*)
DEMO := runs/demo
STREAM := dataset=digits tasks=5 seed=$(SEEDS) root=$(DEMO)

.PHONY: help setup demo test lint check lock weights clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

setup: .venv/.ready ## make .venv with the locked versions

# uv comes from the lock too; bytecode is compiled here, once, instead of at every start.
.venv/.ready: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $$(grep -E '^uv==' requirements.lock)
	$(BIN)/uv pip install --python $(BIN)/python --quiet --compile-bytecode --requirement requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --compile-bytecode --no-deps --editable .
	touch $@

demo: setup ## train, merge and compare on real handwritten digits (SEEDS=1,2,3 for error bars, STRATEGIES=magmax,ties for a few)
	$(BIN)/python train.py -m $(STREAM) method=$(METHODS),joint,zeroshot
	$(BIN)/python merge.py -m $(STREAM) method=$(METHODS) strategy='$(STRATEGIES)' prefixes=true
	$(BIN)/python report.py root=$(DEMO)

test: setup ## run the test suite
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: setup ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test ## lint, then test

lock: setup ## write requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra tensorboard --universal --python-version 3.10 \
		--no-header --no-annotate --no-emit-index-url --quiet --upgrade --output-file requirements.lock

weights: setup ## make the weights of the tiny CLIP anew (7 minutes on two cores)
	$(BIN)/python -m mergestream.models.pretrain_tiny

clean: ## remove the environment and the demo's results
	rm -rf .venv $(DEMO)
