# netprism in a checkout; `make` alone lists what there is.

PYTHON ?= python3
PY := .venv/bin/python
# Listing experiments and refusing an unknown one needs the standard library only: no setup for a typo.
LIST := $(firstword $(wildcard $(PY)) $(PYTHON)) -B -m netprism experiments

.DEFAULT_GOAL := help
.PHONY: help setup train study slurm resume report compare experiments test test-slurm test-strangers test-oldest test-kill \
  test-gpu check release docs bench bench-gpu clean experiment run

help:
	@echo 'make setup                   .venv with netprism and its tools; the others do it when it is missing'
	@echo 'make experiments             what can be trained, one line each'
	@echo 'make train EXP=quickstart    train it [ARGS="--trainer.max_epochs 3 ..."]'
	@echo 'make slurm EXP=... NODES=2 GPUS=8   the same as a job of a Slurm cluster [TIME= PARTITION= CPUS= TASKS= SIGNAL='
	@echo '                             ARGS=]; DRY=1 shows the script'
	@echo 'make slurm STUDY=... GPUS=1  a job for each run of a study, in an array, and the table when all have ended [RETRY=1]'
	@echo 'make study                   the studies: figures and tables of the papers, two lines each'
	@echo 'make study STUDY=...         trains what is missing, then its table, figure and page [JOBS=2 DRY=1 RETRY=1 ARGS=]'
	@echo 'make resume RUN=runs/...     go on with a run from its last checkpoint [ARGS=...]'
	@echo 'make report RUN=runs/...     the run as one page, report.html'
	@echo 'make compare RUNS="runs/... runs/..."   several runs over one another, compare.html'
	@echo 'make test                    the tests [ARGS="-k gates ..."]'
	@echo 'make test-slurm              those that start a real Slurm'
	@echo 'make test-oldest             the tests with the lowest versions that pyproject.toml allows, in .venv-oldest'
	@echo 'make test-kill               30 trainings killed at random moments and resumed [SEED=0 KILLS=30]'
	@echo 'make check                   ruff, mypy and the tests'
	@echo 'make test-strangers          monitors on real modules of timm, transformers, lightly and torchgeo, where installed'
	@echo 'make test-gpu                what can only be seen on a GPU: random state, precisions, NCCL, the numbers of a CPU'
	@echo 'make docs                    the documentation as a site, site/index.html'
	@echo 'make release                 wheel and sdist in dist/; installed with newest and oldest versions, tried and tested there'
	@echo 'make bench                   the timings of benchmarks/'
	@echo 'make bench-gpu               what the monitors add to an epoch on a GPU: share, calls, memory'
	@echo 'make clean                   remove caches and builds; .venv, data and runs stay'

setup: .venv/ready

.venv/ready: pyproject.toml
	@echo 'setting up .venv: torch and what goes with it, 5 GB, some minutes'
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ # last, so that an install that failed is tried again

experiments:
	@$(LIST)

ifdef EXP
train: experiment .venv/ready
	@$(PY) -m netprism fit --config "$$EXP" $(ARGS)
else
train: experiments
endif

study: .venv/ready
	@$(PY) -m netprism study $(if $(STUDY),"$$STUDY") $(if $(JOBS),--jobs=$(JOBS)) $(if $(DRY),--dry-run) $(if $(RETRY),--retry) $(ARGS)

SLURM := $(foreach option,NODES GPUS TASKS CPUS TIME PARTITION SIGNAL,$(if $($(option)),--$(shell echo $(option) | tr A-Z a-z)=$($(option))))

ifdef EXP
slurm: experiment .venv/ready
	@$(PY) -m netprism slurm --config "$$EXP" $(SLURM) $(if $(DRY),--dry-run) $(ARGS)
else ifdef STUDY
slurm: .venv/ready
	@$(PY) -m netprism slurm --study "$$STUDY" $(SLURM) $(if $(DRY),--dry-run) $(if $(RETRY),--retry) $(ARGS)
else
slurm: experiments
endif

experiment:
	@test -f "configs/experiment/$$EXP.yaml" || test -f "$$EXP" || \
	  $(LIST) "$$EXP" || exit 2

resume: run .venv/ready
	@NETPRISM_RUN="$$RUN" $(PY) -m netprism fit --config "$$RUN/config.yaml" --ckpt_path last $(ARGS)

report: run .venv/ready
	@$(PY) -m netprism report "$$RUN"

compare: .venv/ready
	@$(PY) -m netprism compare $(RUNS) $(ARGS)

run:
	@test -f "$$RUN/config.yaml" || \
	  { echo "no run '$$RUN'; there are"; ls -d runs/*/*/config.yaml runs/*/*/*/config.yaml 2>/dev/null | sed 's|/config.yaml||; s|^|  |'; exit 2; } >&2

# The networks of the tests are small, and several processes share the cores.
test test-slurm test-strangers test-oldest test-kill check release: export OMP_NUM_THREADS ?= 1

test: .venv/ready
	@$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

test-slurm: .venv/ready
	@$(PY) -m pytest tests/slurm -m slurm $(ARGS)

test-strangers: .venv/ready
	@$(PY) -m pytest tests/strangers -m strangers $(ARGS)

# NETPRISM_DEVICE=cpu runs the same code without a GPU.
test-gpu: .venv/ready
	@$(PY) -m pytest tests/gpu -m gpu $(ARGS)

test-kill: .venv/ready
	@NETPRISM_KILLS=$(or $(KILLS),30) NETPRISM_KILL_SEED=$(or $(SEED),0) $(PY) -m pytest tests/kill -m kill $(ARGS)

test-oldest: .venv-oldest/ready
	@.venv-oldest/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

.venv-oldest/ready: pyproject.toml .venv/ready
	@.venv/bin/uv venv --quiet --seed --clear --python $(PY) .venv-oldest
	@.venv/bin/uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct --editable '.[dev]'
	@touch $@

check: .venv/ready
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy netprism
	@$(PY) -m pytest -n 2 --dist loadfile

# Newer than .venv/ready where the extra is installed; strict: a dead link or a missing name is an error.
.venv/docs: .venv/ready
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

docs: export NO_MKDOCS_2_WARNING = 1
docs: .venv/docs
	@$(PY) -m mkdocs build
	@echo 'site/index.html; with search: $(PY) -m http.server -d site'

# Far from the checkout, so that what is tried is what people install; `pytest`, unlike `python -m pytest`, does not look
# for netprism in the current folder. Half an hour: the tests run twice; VERSIONS=lowest-direct takes one of the two.
release: .venv/ready
	@rm -rf dist build
	@$(PY) -m hatchling build
	@$(PY) -m pytest -q tests/test_packaging.py
	@set -e; for versions in $(or $(VERSIONS),highest lowest-direct); do \
	  echo "the $$versions versions that pyproject.toml allows"; \
	  .venv/bin/uv venv --quiet --seed --python $(PY) build/$$versions; \
	  .venv/bin/uv pip install --quiet --python build/$$versions/bin/python --resolution $$versions "$$(echo dist/*.whl)[dev]"; \
	  mkdir build/desk-$$versions; build/$$versions/bin/netprism --version; \
	  (cd build/desk-$$versions; WANDB_MODE=disabled ../$$versions/bin/netprism fit --config quickstart --trainer.max_epochs 2); \
	  build/$$versions/bin/pytest -n 2 --dist loadfile tests $(ARGS); \
	done
	@ls dist

bench: .venv/ready
	@set -e; for script in benchmarks/*.py; do echo "$$script"; $(PY) "$$script"; done

bench-gpu: .venv/ready
	@$(PY) benchmarks/monitors.py --device cuda $(ARGS)

clean:
	@rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache
	@find . -path './.venv*' -prune -o -name __pycache__ -print0 | xargs -0 rm -rf
