# embridge: `make help` lists the targets. Everything is installed into .venv; nothing is installed outside it but two
# system libraries that Mooncake links against, and those only as root.

PYTHON ?= python3
# A pinned torch: the range in pyproject.toml would let pip exchange a CPU build for gigabytes of CUDA.
TORCH ?= torch==2.13.0
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
PEERS := $(VENV)/.peers
RELEASING := $(VENV)/.releasing
RELEASED := dist/release
# The oldest glibc that the wheel is for: that of torch's and numpy's own wheels.
MANYLINUX := manylinux_2_28_$(shell uname -m)
PYTHONS ?= python3.11 python3.12 python3.13 python3.14
BUILT := allocator/_core.abi3.so
TYPING := .build/typing
SITE_TOOLS := .build/site-tools
APART := .build/wheelcheck
PACKAGES := pipeline workers allocator
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/embridge
ENGINES := $(CACHE)/dynamo
DYNAMO := ai-dynamo==1.6.1
DYNAMO_NEEDS := pydantic pydantic-core typing-inspection annotated-types safetensors
SOURCES := embridge $(PACKAGES) examples
CORE := $(wildcard allocator/*.c allocator/*.h allocator/*/*.c allocator/*/*.h)
LONG := $(BIN)/python -m pytest --timeout 1800
SYSTEM_LIBRARIES := libibverbs.so.1 libnuma.so.1
SYSTEM_PACKAGES := libibverbs1 libnuma1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup system demo test lint types storm vllm soak mutants bench wheel wheelcheck engines clean
.PHONY: settings metrics api site release

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(BUILT)  ## create .venv, install everything, build the native core (again only when their sources change)

demo: $(BUILT)  ## carry real photographs between two nodes and check every byte; ARGS="--help" lists its options
	$(BIN)/embridge demo $(ARGS)

test: $(BUILT)  ## ruff, mypy --strict, and all tests but storms that a change concerns, or ARGS=--all
	@$(MAKE) --no-print-directory -j2 lint types bytecode
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto -m "not storm" --changed $(ARGS)

lint: $(BUILT)  ## ruff
	$(BIN)/ruff check .

# In one run, for product and tests share its cache; the paths are those from which pytest imports the tests and what
# they share.
types: $(BUILT)  ## mypy --strict for the product and the tests, over links that show the checker the installed layout
	@mkdir -p $(TYPING)/embridge
	@for package in $(PACKAGES); do ln -sfn "$(CURDIR)/$$package" "$(TYPING)/embridge/$$package"; done
	@ln -sfn "$(CURDIR)/examples/demo" "$(TYPING)/embridge/demo"
	@for file in "$(CURDIR)"/embridge/*; do ln -sfn "$$file" "$(TYPING)/embridge/"; done
	MYPYPATH=$(TYPING):tests:tests/allocator:tests/model:tests/native:tests/vllm \
		$(BIN)/mypy --config-file pyproject.toml --cache-dir .mypy_cache $(TYPING)/embridge tests

settings: $(BUILT)  ## docs/settings.md and deploy/node.toml, from the settings themselves
	@$(BIN)/python -m embridge.pipeline.settings_page > docs/settings.md
	@$(BIN)/python -m embridge.pipeline.settings_toml > deploy/node.toml

metrics: $(BUILT)  ## docs/metrics.md, from the metrics themselves
	@$(BIN)/python -m embridge.pipeline.metrics_page > docs/metrics.md

api: $(BUILT)  ## docs/api/, from the docstrings of the public names
	@$(BIN)/python -m embridge.api_page docs/api

site: $(SITE_TOOLS)/.installed  ## README and docs/ as a site, in .build/site; its tools are installed apart, 170 MB
	@NO_MKDOCS_2_WARNING=1 $(SITE_TOOLS)/bin/python -m mkdocs build --strict --quiet
	@echo "$(PYTHON) -m http.server -d $(CURDIR)/.build/site shows it"

# Where Python is told to write none, each of some thousand processes would compile every module anew; and in a new
# clone each of pytest's processes would compile all tests.
.PHONY: bytecode
bytecode: $(BUILT)
	@$(BIN)/python -m compileall -q $(SOURCES)
	@ls tests/__pycache__/conftest*.pyc >/dev/null 2>&1 \
		|| PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q --collect-only -m "not storm" >/dev/null

# Those that start nodes come last and one at a time, for each of them fills the machine: beside others, and beside
# programs that spin on every core, a killed process takes seconds to end and to begin again. Status 5 says that nothing
# was left to run.
storm: $(BUILT) bytecode  ## the long randomised runs, about an hour; ARGS=--resume goes on with what has not passed yet
	@status=0; \
	$(LONG) -n auto --dist worksteal -m "storm and not process" --passed=.build/storm.passed $(ARGS) \
		|| test $$? = 5 || status=1; \
	$(LONG) -m "storm and process" --passed=.build/storm-of-nodes.passed $(ARGS) \
		|| test $$? = 5 || status=1; \
	exit $$status

vllm: $(BUILT)  ## the connector for vLLM with vLLM's own scheduler, which is installed once a user; ARGS for pytest
	TORCH="$(TORCH)" .ci/vllm $(ARGS)

soak: $(BUILT)  ## an hour of full load, and whether anything drifts; ARGS="--engine mooncake --seconds 600", say
	PYTHONPATH=tests $(BIN)/python -m storm.soak $(ARGS)

mutants: $(BUILT)  ## break promises on purpose, one at a time: each must turn a test red; ARGS="--only NAME", "--list"
	cd tests && ../$(BIN)/python -m mutants $(ARGS)

bench: $(BUILT) $(PEERS)  ## every benchmark in bench/, one after another; ARGS=--quick for a first look
	@set -e; for file in $(sort $(filter-out bench/compare.py, $(wildcard bench/[!_]*.py))); do \
		echo "== $$file"; $(BIN)/python "$$file" $(ARGS); \
	done

wheel: $(BUILT)  ## build a wheel into dist/
	@rm -rf build/lib.* build/bdist.*  # else modules that are no more would be packed, too
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls -l dist/*.whl

# An environment of its own, without the editable install: what .venv has besides is added by a path file, whose
# folders' own path files (so the finder of the editable install) Python does not read. Run from another folder, which
# holds none of the sources.
wheelcheck: wheel  ## install the wheel apart, and run tests of rooms and package against it; ARGS for pytest
	@rm -rf $(APART) && mkdir -p $(APART)/folder
	@$(BIN)/python -m venv --without-pip $(APART)/venv
	@$(PIP) --python $(APART)/venv/bin/python install --quiet --no-deps --no-index $$(ls -t dist/embridge-*.whl | head -1)
	@site=$$($(APART)/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$site/zz_tools.pth" && \
	cd $(APART)/folder && TESTED_EMBRIDGE_SITE="$$site" ../venv/bin/python -m pytest -c "$(CURDIR)/pyproject.toml" \
		--rootdir "$(CURDIR)" -p no:cacheprovider -n auto -m "not storm" $(ARGS) \
		"$(CURDIR)/tests/test_package.py" "$(CURDIR)/tests/allocator" "$(CURDIR)/tests/pipeline" "$(CURDIR)/tests/transfers"

# The sdist is installed, too, in an environment of its own, and builds its core there.
release: $(RELEASING) wheel  ## wheel and sdist into dist/release, each tried in empty environments of PYTHONS
	@rm -rf $(RELEASED) && mkdir -p $(RELEASED)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --plat $(MANYLINUX) --wheel-dir $(RELEASED) \
		$$(ls -t dist/embridge-*.whl | head -1)
	$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("$(RELEASED)")' >/dev/null
	@rm -rf .build/sdist && $(PYTHON) -m venv .build/sdist
	.build/sdist/bin/python -m pip --disable-pip-version-check install --quiet --no-deps $(RELEASED)/embridge-*.tar.gz
	cd .build && sdist/bin/python -c 'from embridge.allocator import _core; print(_core.__file__)'
	TORCH="$(TORCH)" .ci/pythons $(RELEASED)/embridge-*.whl $(PYTHONS)
	@ls -l $(RELEASED)

# The engines' packages go into folders of their own, one an engine. Of Dynamo's the tests import one module, so it
# comes without dependencies. SGLang comes with what its modules import; a folder that is not complete is made anew.
SGLANG_LIST := tests/integrations/sglang.txt
SGLANG = $(CACHE)/sglang-$(firstword $(shell cksum < $(SGLANG_LIST)))
engines: $(BUILT)  ## tests of what is for Dynamo and SGLang over their packages (4 MB, 1.3 GB; in the user's cache)
	@test -d "$(ENGINES)/dynamo" || { echo "installing $(DYNAMO) into $(ENGINES)"; \
		$(PIP) install --quiet --no-deps --target "$(ENGINES)" $(DYNAMO) $(DYNAMO_NEEDS); }
	PYTHONPATH="$(ENGINES)" $(BIN)/python -m pytest -n 0 -p no:cacheprovider $(ARGS) tests/integrations/test_dynamo.py
	@test -e "$(SGLANG)/.complete" || { rm -rf "$(SGLANG)"; \
		echo "installing SGLang into $(SGLANG): 1.3 GB, of which Triton is 1 GB; two minutes"; \
		{ $(PIP) install --quiet --no-deps --target "$(SGLANG)" -r $(SGLANG_LIST) && touch "$(SGLANG)/.complete"; } || \
		echo "SKIPPED: the tests over SGLang itself: it cannot be installed; pip says why above" >&2; }
	@test ! -e "$(SGLANG)/.complete" || PYTHONPATH="$(SGLANG)" HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 0 \
		-p no:cacheprovider $(ARGS) tests/integrations/test_sglang*.py

clean:  ## remove what was built, .venv too
	rm -rf $(VENV) .build build dist embridge.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis allocator/*.so
	find $(SOURCES) tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

system:
	@missing=; for library in $(SYSTEM_LIBRARIES); do \
		PATH="$$PATH:/sbin:/usr/sbin" ldconfig -p | grep -q "$$library" || missing="$$missing $$library"; \
	done; \
	test -z "$$missing" && exit 0; \
	if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
		echo "missing:$$missing; installing $(SYSTEM_PACKAGES)"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
			$(SYSTEM_PACKAGES) >/dev/null && exit 0; \
	fi; \
	echo "missing:$$missing; Mooncake will not load, so nodes serve peers on their own host only:" \
		"install $(SYSTEM_PACKAGES) (Debian's names) with the system's package manager" >&2

# Torch goes first and pinned, so that no later line resolves it; no build isolation, or pip would fetch it once more.
$(INSTALLED): pyproject.toml setup.py constraints.txt | system
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt setuptools wheel
	$(PIP) install --quiet -c constraints.txt $(TORCH)
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[demo,dev,discovery,mooncake-non-cuda]'
	@touch $@

$(SITE_TOOLS)/.installed: constraints.txt
	$(PYTHON) -m venv $(SITE_TOOLS)
	$(SITE_TOOLS)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt mkdocs-material
	@touch $@

# A benchmark runs without its peers, too, and says so.
$(PEERS): $(INSTALLED)
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[bench]' \
		|| echo "the peers could not be installed" >&2
	@touch $@

$(RELEASING): $(INSTALLED)
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[release]'
	@touch $@

$(BUILT): $(INSTALLED) $(CORE)
	$(BIN)/python setup.py --quiet build_ext --inplace --force
