# make demo, make test, make check; `make` alone lists the targets.

PYTHON ?= python3
BIN := .venv/bin
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
DEMO := runs/demo
SEEDS ?= 5
STRATEGIES ?= magmax,average
# Some of all strategies need it.
CURVATURE = $(if $(findstring glob,$(STRATEGIES)),curvature.fisher=true curvature.gram=true)
STREAM := dataset=digits tasks=5 epochs=5 seed=$(SEEDS) root=$(DEMO)
# The streams of the embedded benchmark.
PARTS := glyphs_20 glyphs_domain glyphs_10 glyphs_5 digits_5

ANALYSED := $(filter-out sign_conflicts,$(basename $(notdir $(wildcard configs/analysis/*.yaml))))
OVER_SEEDS := tiny/seq/seed-1/analyses/sign_conflicts-seeds=[1,2,3,4,5]

.PHONY: help setup demo benchmark results test test-slurm test-ray fuzz lint check wheel lock weights clean docs

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

demo: setup ## train, merge and compare on real handwritten digits (STRATEGIES='glob(*)' for all of them, SEEDS=1,2,3 for error bars)
	@echo "training: sequential, independent and joint, five tasks of two digits, five epochs each; about a minute"
	@$(BIN)/python train.py -m $(STREAM) method=seq,ind,joint,zeroshot logger=none $(CURVATURE) > /dev/null
	@$(BIN)/python merge.py -m $(STREAM) method=seq,ind strategy='$(STRATEGIES)' prefixes=true > /dev/null
	@$(BIN)/python report.py root=$(DEMO)
	@echo "picture in $(DEMO)/_report/digits-class-5-tiny-curves.png: accuracy and forgetting after each task"
	@echo "next: make demo STRATEGIES='glob(*)' merges with every strategy; docs/getting-started.md explains the commands"

benchmark: setup ## every method and strategy on the embedded streams, five seeds, and the reports; continues where it stopped
	$(BIN)/python pipeline.py +experiment=embedded 'stages=[train,merge]' > /dev/null
	# Retention of every merge and of every last encoder: the digits after the glyphs streams, and the other way round.
	for part in $(PARTS); do for encoder in merge last; do \
		$(BIN)/python evaluate.py +experiment=embedded_$$part encoder=$$encoder \
			on=[$$(case $$part in (digits*) echo glyphs;; (*) echo digits;; esac)] > /dev/null || exit 1; done; done
	$(BIN)/python report.py root=runs/embedded
	$(BIN)/python pipeline.py +experiment=beyond > /dev/null
	$(BIN)/python pipeline.py +experiment=confirmation > /dev/null
	$(BIN)/python analyze.py -m root=runs/embedded dataset=glyphs tasks=10 seed=1 'analysis=glob(*)'
	$(BIN)/python analyze.py -m root=runs/embedded dataset=glyphs tasks=5,10,20 seed=1 'analysis.seeds=[1,2,3,4,5]'
	$(BIN)/python analyze.py root=runs/embedded dataset=glyphs stream=domain seed=1 'analysis.seeds=[1,2,3,4,5]'
	$(BIN)/python analyze.py root=runs/embedded dataset=digits tasks=5 seed=1 'analysis.seeds=[1,2,3,4,5]'

results: ## publish the reports of the embedded benchmark, its figures and their numbers in docs/results
	test -f "runs/embedded/glyphs/class-10/$(OVER_SEEDS).csv"
	for name in embedded beyond confirmation; do test -f runs/$$name/_report/report.csv || exit 1; done
	find docs/results -type f -delete
	cp runs/embedded/_report/report.md runs/embedded/_report/report.csv docs/results
	for name in beyond confirmation; do cp runs/$$name/_report/report.csv docs/results/$$name.csv || exit 1; done
	for name in $$(grep -o '[^(]*\.png' docs/results/report.md); do cp runs/embedded/_report/$$name docs/results || exit 1; done
	for name in $(foreach kind,png csv,$(ANALYSED:=.$(kind))); do \
		cp runs/embedded/glyphs/class-10/tiny/seq/seed-1/analyses/$$name docs/results/glyphs-class-10-$$name || exit 1; done
	cp "runs/embedded/glyphs/class-10/$(OVER_SEEDS).png" docs/results/glyphs-class-10-sign_conflicts.png
	for stream in digits/class-5 glyphs/class-5 glyphs/class-10 glyphs/class-20 glyphs/domain-6; do \
		cp "runs/embedded/$$stream/$(OVER_SEEDS).csv" docs/results/$$(echo $$stream | tr / -)-sign_conflicts.csv || exit 1; done

docs: export NO_MKDOCS_2_WARNING = 1
docs: setup ## build the documentation into site/; warnings are errors
	$(BIN)/mkdocs build --strict

# One process more than there are cores, since some tests wait for other processes.
test: setup ## run the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(($(JOBS) + 1)) --dist worksteal

test-slurm: setup ## start a SLURM of three nodes here (as root, with Debian's packages), and try on it what docs/clusters.md lists
	scripts/slurm/test.sh $(BIN)/python

test-ray: .venv-ray/.ready ## make .venv-ray, an environment of its own with Ray, and run the tests of cluster=ray in it
	OMP_NUM_THREADS=1 .venv-ray/bin/python -m pytest tests/cli/test_ray.py

.venv-ray/.ready: .venv/.ready
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-ray
	$(BIN)/uv pip install --python .venv-ray/bin/python --quiet --constraint requirements.lock --editable '.[dev,ray]'
	touch $@

fuzz: setup ## try 500 random pictures, checkpoints and command lines of each kind, where the suite tries 25
	FUZZ_EXAMPLES=500 $(BIN)/python -m pytest -n auto tests -k "fuzz or any_override"

lint: setup ## check format, style, types and which room imports which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

check: lint test ## lint, then test

wheel: setup ## build sdist and wheel into dist/, and try the wheel in an empty environment
	scripts/check_wheel.sh

lock: setup ## write requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra docs --extra tensorboard --universal --python-version 3.10 \
		--no-header --no-annotate --no-emit-index-url --quiet --upgrade --output-file requirements.lock

weights: setup ## make the weights of the tiny CLIP anew (7 minutes on two cores)
	$(BIN)/python scripts/pretrain_tiny.py

clean: ## remove the environment, the demo's results and the built documentation
	rm -rf .venv .venv-ray site $(DEMO)
