# make test: everything that a change must pass. make demo: a report of a recorded trace. make lab: record live, in the lab.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/
OUT := out

.PHONY: help setup packages test lint demo man lab lab-matrix lab-findings lab-recipes bench fuzz mutate clean

help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready ## the virtual environment, from requirements.txt

$(VENV)/.ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "intxtrace needs Python 3.11 or newer: make PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { \
	  [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv --clear $(VENV); }
	$(RUN)python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN)python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

packages: setup ## the Debian packages that the tests need (as root they are installed)
	$(RUN)python -m tests.packages

lint: setup ## ruff and mypy
	$(RUN)ruff check
	$(RUN)ruff format --check
	$(RUN)mypy

test: setup packages lint ## static checks and all tests, the lab included
	$(RUN)python -m pytest

demo: setup ## an HTML report of a real recorded trace
	@mkdir -p $(OUT)
	@$(RUN)intxtrace summary tests/traces/userspace-6.1.intx
	@$(RUN)intxtrace report --force -o $(OUT)/demo.html tests/traces/userspace-6.1.intx
	@echo "open it in a browser: file://$(CURDIR)/$(OUT)/demo.html"

man: setup ## the manual page, made anew of the commands
	@$(RUN)python -m tests.manual
	@man -l intxtrace/man/intxtrace.1

lab: setup packages ## boot the nested host, record a guest on each path, compare with the truth, report
	@rm -rf $(OUT)/lab
	$(RUN)python -m tests.lab truth --guests kernel,hybrid,userspace --out $(OUT)/lab
	@echo "reports: $(CURDIR)/$(OUT)/lab/*.html"

lab-matrix: setup packages ## all guests on every kernel and QEMU of the lab
	@rm -rf $(OUT)/lab-matrix
	for kernel in 6.1 6.12; do for qemu in 7.2 10.0; do \
	  $(RUN)python -m tests.lab truth --kernel $$kernel --qemu $$qemu --out $(OUT)/lab-matrix/$$kernel-$$qemu || exit 1; \
	done; done
	$(RUN)python -m tests.lab truth --kernel 7 --qemu 11 --out $(OUT)/lab-matrix/7-11

lab-findings: setup packages ## guests with one thing wrong each: is it named, and nothing else; is what devices says so
	@rm -rf $(OUT)/lab-findings
	$(RUN)python -m tests.lab findings --out $(OUT)/lab-findings

lab-recipes: setup packages ## every recipe beside intxtrace: does what it records import as the same interrupts
	@rm -rf $(OUT)/lab-recipes
	$(RUN)python -m tests.lab recipes --out $(OUT)/lab-recipes

bench: setup packages ## benchmarks: each prints its figure beside a peer's from the same run
	$(RUN)python -m tests.benchmarks

fuzz: setup ## 100,000 damaged copies of a recording for each importer, and long property tests (half an hour)
	$(RUN)python -m tests.fuzz.run
	INTXTRACE_FUZZ=1 $(RUN)python -m pytest tests/unit/test_reconstruct.py tests/unit/test_trace.py

mutate: setup ## break every rule of the state machine, one at a time: which breaks does no test notice?
	$(RUN)python -m tests.mutate

clean: ## what make made, but for the cache of packages
	rm -rf $(VENV) $(OUT) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
