# bigqa: everything runs in .venv, which needs only Python 3.10 or later, git and make.
#   make install EXTRAS=test        a smaller installation (no DeepSpeed, bitsandbytes, PEFT)
#   make install PYTHON3=python3.12 another Python

PYTHON3 ?= python3
EXTRAS  ?= test,8bit,adapters,deepspeed,scores,sweep
VENV    := .venv
PYTHON  := $(VENV)/bin/python
STAMP   := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo demo-comments demo-lm test coverage check audit slow docs messages mutants torture test-null-gpu gpu bench dist clean

help:  ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done

install: $(STAMP)  ## make .venv and install bigqa with its pinned dependencies (once)
	@:

# torch first: DeepSpeed's build looks for it. DS_BUILD_OPS=0: no compiler and no nvcc needed to install.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON3) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "bigqa: needs Python 3.10 or later; name one with PYTHON3=")'
	@echo "bigqa: installing into $(VENV) (some minutes, once)"
	@$(PYTHON3) -m venv $(VENV)
	@$(PYTHON) -m pip install -qq --disable-pip-version-check -c constraints.txt torch
	@DS_BUILD_OPS=0 $(PYTHON) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@echo "bigqa: compiling what DeepSpeed would compile at its first use (a minute or two, once)"
	@$(PYTHON) -W ignore -m bigqa.engine.extensions >$(VENV)/compiled.log 2>&1 || true; grep -a '^bigqa:' $(VENV)/compiled.log || true
	@touch $@

demo: install  ## train a small Korean QA model on a sample, on whatever this machine has
	@$(PYTHON) -m bigqa.demo

demo-comments: install  ## train a small model on labelled comments, beside a bag of words
	@$(PYTHON) -m bigqa.demo --task classify --out demo-comments

demo-lm: install  ## train a small language model on conversations
	@$(PYTHON) -m bigqa.demo --task lm --out demo-lm

test: install  ## run the tests (no GPU, no network)
	@$(PYTHON) -m pytest

coverage: install  ## the same, and which lines and branches of bigqa they ran (htmlcov/index.html)
	@$(PYTHON) -m pytest --cov --cov-report term --cov-report html

check: install  ## ruff, its formatter, mypy
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy bigqa

audit: install  ## look for secrets in what is committed, and for known faults of the pinned packages
	@$(PYTHON) -c 'import detect_secrets, pip_audit' 2>/dev/null || $(PYTHON) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[audit]'
	@$(PYTHON) tests/audit.py

slow: install  ## run the tests that take minutes
	@$(PYTHON) -c 'import ipykernel, nbclient' 2>/dev/null || $(PYTHON) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[notebook]'
	@$(PYTHON) -m pytest -m "slow and not nullgpu"

# Offline once it is installed; strict: a link that leads nowhere ends it. What is made of code: docs/hooks.py.
docs: install  ## build the pages of docs/ into site/ (site/index.html)
	@$(PYTHON) -c 'import material, mkdocstrings' 2>/dev/null || $(PYTHON) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet
	@echo "bigqa: site/index.html"

messages: install  ## bring the Korean catalogue up to date with the texts of the code, and name what it lacks
	@$(PYTHON) tests/messages.py

mutants: install  ## break the code in small ways, see that tests fail; resumable (MODULE=bigqa/tasks SAMPLE=20 SEED=2 AGAIN=1)
	@$(PYTHON) -c 'import cosmic_ray, coverage, pytest_timeout' 2>/dev/null || $(PYTHON) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[mutants]'
	@$(PYTHON) tests/mutants/run.py $(addprefix --module ,$(MODULE)) $(addprefix --sample ,$(SAMPLE)) $(addprefix --seed ,$(SEED)) $(if $(AGAIN),--again)

# As root more kinds of faults are had: disks of their own, a limit of memory. CASES=100 for fewer.
torture: install  ## break runs at random moments, go on with them, compare with unbroken ones; resumable (SEED=2 CASES=100)
	@$(PYTHON) -W ignore -m benchmarks.torture $(addprefix --seed ,$(SEED)) $(addprefix --cases ,$(CASES))
	@$(PYTHON) -W ignore -m benchmarks.torture --table

# torch's CUDA build goes into bigqa's cache, beside .venv's other packages: 600 MB to download, 1.4 GB on disk, once.
# Where it cannot be downloaded, that is said in a line, and the tests are passed over.
test-null-gpu: install  ## run the tests that need torch's CUDA build, on a GPU that is not there (WHOLE=1: long ones too)
	@BIGQA_NULL_INSTALL=1 WHOLE=$(WHOLE) $(PYTHON) tests/run_null_gpu.py

# Not installed: a machine that is lent for minutes has torch already. WHEELS: a folder of wheels that it lacks.
gpu:  ## measure all on this CUDA GPU; resumable (BUDGET=540 WHEELS=dir DATA=korquad.json)
	@$(PYTHON3) -m benchmarks.gpu_session --budget-s $(or $(BUDGET),540) $(addprefix --wheels ,$(WHEELS)) $(addprefix --data ,$(DATA))

BENCH = $(PYTHON) -m bigqa.cli bench --device cpu --out benchmarks/runs/cpu
FOUR  = --steps 0 --precision fp32 --strategies cpu,cpu-recompute,cpu-8bit,cpu-8bit-recompute

bench: install  ## measure what benchmarks/README.md shows of a CPU (hours; what is measured is not run again)
	@$(BENCH) enliple-small --micro-batch 16,4 --strategies cpu --steps 6
	@$(BENCH) bert-base --seq-len 384 --global-batch 8 --micro-batch 8,2 --strategies cpu --steps 6
	@$(BENCH) enliple-small --micro-batch 16,4
	@$(BENCH) bert-base --seq-len 384 --global-batch 8 --micro-batch 8,2
	@$(BENCH) enliple-large-v1 --seq-len 384 --global-batch 4 --micro-batch 4,1 --steps 1
	@$(BENCH) enliple-small --micro-batch 16,4 $(FOUR)
	@$(BENCH) bert-base --seq-len 384 --global-batch 8 --micro-batch 8,2 $(FOUR)
	@$(BENCH) enliple-large-v1 --seq-len 384 --global-batch 4 --micro-batch 4,1 $(FOUR)
	@$(BENCH) enliple-large-v1 --seq-len 384 --global-batch 1 --micro-batch 1 --steps 0 \
	    --strategies cpu,cpu-recompute,cpu-8bit,cpu-8bit-recompute,cpu-least
	@$(BENCH) enliple-small --micro-batch 16 --steps 0 --strategies zero1,zero2,zero3,zero2-offload,zero3-offload

dist: install  ## build the wheel and the source archive into dist/
	@$(PYTHON) -m build --no-isolation

clean:  ## remove .venv and everything that was built or cached
	@rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* htmlcov .mutants
	@find bigqa tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
