# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
# torch goes first and by exact version: any other package that pulls it in fresh may take a CUDA build of gigabytes.
# A torch of your own that pyproject.toml accepts works just as well: set TORCH to it.
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: setup demo study test test-all check bench clean

setup: .venv/ready

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "offprincipal needs python 3.11 or later, found: $(PYTHON)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "python's venv module is missing: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[report,lab,ray]' --group dev
	@touch $@

demo: setup
	$(BIN)/offprincipal lab run --preset tiny -o demo/lab
	$(BIN)/offprincipal lab claims demo/lab -o demo/compare
	$(BIN)/offprincipal compare demo/lab/base sft=demo/lab/sft sft-off=demo/lab/sft-off \
	  rlvr-1=demo/lab/rlvr-1 rlvr-2=demo/lab/rlvr-2 -o demo/compare

# Hours on two cores; may be stopped and started again.
study: setup
	for n in 0 1 2 3 4; do $(BIN)/offprincipal lab run --preset tiny --seed $$n --intervene --neurons -o study/lab/seed-$$n || exit; done
	$(BIN)/offprincipal lab arms --lr 7e-5,2e-4,7e-4,2e-3,7e-3 --seeds 0,1,2 -j 2 -o study/lab/seed-0
	$(BIN)/offprincipal lab arms --arms lora-1,off-principal --lr 2e-2 --seeds 0,1,2 -j 2 -o study/lab/seed-0
	$(BIN)/offprincipal lab arms --arms random-2,random-3,random-4,random-5 --lr 7e-4 --seeds 0,1 -j 2 -o study/lab/seed-0
	$(BIN)/offprincipal lab matched study/lab -o study/claims -j 2
	for lab in study/lab/seed-*; do \
	  head -n 64 $$lab/held-out.jsonl > $$lab/probe-texts.jsonl; \
	  $(BIN)/offprincipal probe curvature $$lab/base rl=$$lab/rlvr-1 --prompts $$lab/probe-texts.jsonl --batches 4 -o $$lab/probes || exit; \
	  course=$$lab/matched/rlvr/lr-2.5e-05; \
	  $(BIN)/offprincipal compare $$lab/base $$(for n in 5 10 20 40 60; do echo step_$$n=$$course/step-$$n/master; done) --trajectory -o $$lab/steps || exit; \
	done
	$(BIN)/offprincipal lab claims study/lab -o study/claims --publish docs/results

test: setup
	$(BIN)/pytest -q -n auto --dist loadfile

test-all: setup
	$(BIN)/pytest -q -n auto --dist loadfile -m ""

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/compare.py
	$(BIN)/python benchmarks/geometry.py
	$(BIN)/python benchmarks/transform.py
	$(BIN)/python benchmarks/probes.py
	$(BIN)/python benchmarks/masks.py
	$(BIN)/python benchmarks/masked_adamw.py

clean:
	rm -rf .venv demo out study
