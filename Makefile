# Every target makes the environment that it needs, so a fresh clone with Python
# 3.11 or newer and make is enough. Another Python: make test PYTHON=python3.13

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# How many processes share the tests; 0 runs them in one: make test WORKERS=0
WORKERS ?= auto

bin = $(VENV)/bin
# For recipes that change the directory; VENV may be relative or absolute.
absolute_bin = $(if $(filter /%,$(VENV)),$(bin),$(CURDIR)/$(bin))
python = "$(absolute_bin)/python"
# Twice quiet: errors are shown, progress and hints of pip are not.
install = $(bin)/python -m pip install -qq --editable .
# A stamp for each set of packages, renewed when pyproject.toml changes.
stamp = $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo serve test soak tried check coverage bench docs clean

help:
	@echo "make demo     show the example shop at work in the terminal"
	@echo "make serve    open the example shop in a browser"
	@echo "make test     run the tests, on SQLite"
	@echo "make soak     kill workers at random and look for leaks, on DATABASE_URL"
	@echo "make tried    try other packages beside this one, on PostgreSQL"
	@echo "make check    run the linters and the type checkers"
	@echo "make coverage run the tests and report the lines they miss"
	@echo "make bench    compare the speed with that of others"
	@echo "make docs     build the documentation"
	@echo "make clean    remove the environment and what was built"

demo: $(stamp)-example
	@cd example_project && $(python) manage.py migrate --verbosity 0
	@cd example_project && $(python) manage.py demo $(ARGS)

serve: $(stamp)-example
	@cd example_project && $(python) manage.py migrate --verbosity 0
	@cd example_project && $(python) manage.py seed
	@cd example_project && $(python) manage.py runserver $(ARGS)

# Without DATABASE_URL, so that a developer's own setting changes nothing.
test: $(stamp)-test
	@env -u DATABASE_URL $(bin)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

# The long tests at their full size; workers are killed where DATABASE_URL names a
# server.
soak: $(stamp)-test
	@CQRS_SOAK=1 $(bin)/python -m pytest tests/outbox/test_chaos.py \
	  tests/outbox/test_machine.py tests/outbox/worker/test_worker.py \
	  tests/test_properties.py tests/test_benchmarks_run.py \
	  tests/events/projections/test_inline_concurrency.py tests/schedules/test_chaos.py \
	  tests/events/projections/test_chaos.py tests/events/projections/test_workers.py \
	  tests/example/test_example.py::TestProject::test_its_own_tests_pass \
	  $(ARGS)

# In an environment of its own: the packages are in the versions that the page names.
tried: VENV := $(VENV)-tried
tried:
	@$(MAKE) --no-print-directory VENV=$(VENV) $(VENV)/.installed-tried
	@CQRS_TRIED=1 $(VENV)/bin/python -m pytest --ds tests.tried.settings \
	  --ignore tests/tried/tenants tests/tried $(ARGS)
	@CQRS_TRIED=1 $(VENV)/bin/python -m pytest --ds tests.tried.tenants_settings \
	  tests/tried/tenants $(ARGS)

check: $(stamp)-check
	$(bin)/python -m ruff check
	$(bin)/python -m ruff format --check
	$(bin)/lint-imports
	$(bin)/python -m mypy
	$(bin)/python -m pyright --pythonpath $(bin)/python

coverage: $(stamp)-test
	@env -u DATABASE_URL $(bin)/python -m coverage run -m pytest $(ARGS)
	@$(bin)/python -m coverage report

# The workers of the outbox and of its peers run in an environment of their own: a peer
# may not take the newest Django, and all of them are to run with the same.
bench: $(stamp)-bench
	@$(MAKE) --no-print-directory VENV=$(VENV)-peers $(VENV)-peers/.installed-peers
	@$(bin)/python -m tests.benchmarks --workers $(VENV)-peers/bin/python $(ARGS)

docs: $(stamp)-docs
	@$(bin)/python -m sphinx -n -W --keep-going -q -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

clean:
	rm -rf $(VENV) $(VENV)-peers $(VENV)-tried docs/_build dist build .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=..."; \
	  exit 1; }
	@echo "Creating $(VENV); the first time takes about a minute ..."
	@$(bin)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(bin)/python -m pip install -qq --upgrade "pip>=25.1"
	@touch $@

$(stamp)-%: pyproject.toml | $(VENV)/.pip
	@echo "Installing the packages for \"$*\" into $(VENV) ..."
	@$(install) $(groups)
	@touch $@

$(stamp)-example: groups = --group example
$(stamp)-test: groups = --group test
$(stamp)-check: groups = --group lint --group test --group types
$(stamp)-bench: groups = --group bench --group services
$(stamp)-peers: groups = --group peers
$(stamp)-services: groups = --group services --group test
$(stamp)-tried: groups = --group tried
$(stamp)-docs: groups = --group docs
