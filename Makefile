# Everything starts here. A target sets up what it needs: a virtual environment with the versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# One more than there are cores: tests of the edges wait for processes and for real time.
WORKERS ?= $(shell $(BIN)/python -c "import os; print((os.cpu_count() or 1) + 1)")

# A shell that says so has no bytecode kept: each worker, each phase and each process that a test starts would compile
# all of it again; to collect the tests took 12 s each time, and takes 5.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq install --constraint constraints.txt

# Layers 0 to 4 and the tiers: what coverage holds at 100 % of branches.
PYTEST := $(BIN)/python -m pytest -q
NONE := 5  # pytest's own code for no test of that kind
comma := ,
space := $(subst ,, )
PARTS := outcome policy context alarms lane call window counts arguments bulkhead breaker retry coalesce events terms memory views registered operation upstream
CORE := $(subst $(space),$(comma),$(PARTS:%=gateway/%.py) fallbacks/answer.py fallbacks/chain.py fallbacks/tiers.py fallbacks/last_good.py fallbacks/copying.py fallbacks/sizes.py fallbacks/behind.py fallbacks/envelope.py fallbacks/spelling.py fallbacks/wall.py)

# Two stamps, since the demo needs no tools. An environment whose Python is gone is made anew.
RUN := $(VENV)/.run
DEV := $(VENV)/.dev
BENCH_PYTHONS := 3.11 3.13
GONE := $(shell $(BIN)/python -c "" 2>/dev/null || echo gone)

.PHONY: help demo test check format coverage mutation bench clean gone
.DELETE_ON_ERROR:

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
	@echo 'PYTHON=python3.12 takes another Python, VENV=.venv312 another environment.'

demo: $(RUN)  ## Run the movie catalog (ARGS="..." goes to `gateway demo`); Ctrl-C ends it
	@exec $(BIN)/gateway demo $(ARGS)

test: $(DEV)  ## Run the tests (ARGS="..." goes to pytest)
	@$(PYTEST) -n $(WORKERS) --dist worksteal -m "not alone" $(ARGS) || [ $$? -eq $(NONE) ]
	@$(PYTEST) -m alone $(ARGS) || [ $$? -eq $(NONE) ]

check: $(DEV)  ## Lint, format, types, architecture
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict
	$(BIN)/lint-imports --no-logo
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(DEV)  ## Format the code, and mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

coverage: $(DEV)  ## Measure the tests: all of it, then the core, which must be at 100 % of branches
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -q $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report
	@$(BIN)/coverage report --include=$(CORE) --fail-under=100

# On CPython 3.11.7 mutmut 3.8.1 crashes while it collects its statistics: make mutation PYTHON=python3.13 VENV=.venv313
mutation: $(DEV)  ## Break bulkhead.py and breaker.py in every way the tool knows, and list what no test noticed
	@$(BIN)/mutmut run $(ARGS)
	@$(BIN)/mutmut results
	@$(BIN)/mutmut export-cicd-stats && cat mutants/mutmut-cicd-stats.json

# A Python that is not there is left out. With both of them and all of it, this takes a while: ARGS="--quick", or one part.
bench: $(BENCH_PYTHONS:%=.venv-bench-%/.ready)  ## Measure beside others, and write docs/benchmarks.md (ARGS="speed --quick")
	@exec "$$(ls .venv-bench-*/bin/python | tail -n 1)" -m benchmarks $(ARGS)

clean:  ## Remove the environments and all that the tools leave
	rm -rf .venv* build dist mutants htmlcov .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN): pyproject.toml constraints.txt $(GONE)
	@echo "Setting up $(VENV) (once, and again when pyproject.toml or constraints.txt change) ..."
	@$(if $(GONE),$(NEW_VENV))
	@$(PIP) hatchling editables
	@$(PIP) --no-build-isolation --editable '.[top]'
	@touch $@

$(DEV): $(RUN)
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

# The peers stand in environments of their own: what they need is nothing to us.
.venv-bench-%/.ready: pyproject.toml constraints.txt benchmarks/constraints.txt
	@for python in python$* "$$(pyenv prefix $* 2>/dev/null)/bin/python"; do \
		"$$python" -c 'import venv' 2>/dev/null || continue; \
		echo "Setting up .venv-bench-$* (once, and again when pyproject.toml or a constraints.txt change) ..."; \
		"$$python" -m venv --clear .venv-bench-$* && \
		install=".venv-bench-$*/bin/python -m pip --disable-pip-version-check --no-input -qq install --constraint constraints.txt" && \
		$$install hatchling editables && \
		$$install --no-build-isolation --editable '.[speed]' --requirement benchmarks/constraints.txt && \
		touch $@; exit; \
	done; echo "no Python $* here: it is left out"

gone:

define NEW_VENV
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not one: make PYTHON=python3.12 ..." >&2; exit 1; }; \
$(PYTHON) -m venv --clear $(VENV) || { \
	echo "'$(PYTHON)' cannot make a virtual environment (on Debian: apt install python3-venv)" >&2; exit 1; }
endef
