# Everything is done inside .venv, which is made on first use. Nothing else on the machine changes,
# but that `make test` as root on Debian installs SimGrid, with which the network is compared, and
# Chromium, in which the pictures are opened.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: help run test kernels bench lint format wheel clean distclean simgrid browser hta

help:
	@echo "make run        set up, then simulate the main job (nvswitch16, moe128)"
	@echo "make test       set up, then lint, type check and test"
	@echo "make hta        install HolisticTraceAnalysis beside (500 MB), compare exported traces with it"
	@echo "make bench      set up, then measure speed and memory against the goals"
	@echo "make lint       ruff and mypy alone"
	@echo "make format     let ruff rewrite what it can"
	@echo "make wheel      build dist/*.whl"
	@echo "make clean      remove build outputs and caches (distclean: .venv too)"
	@echo "PYTHON=python3.12 make ... chooses the interpreter for .venv (3.11 or later)"

run: $(VENV)/.installed
	@$(BIN)/python -m simulator --topology nvswitch16 --workload moe128

# A process for each core; the tests of a file share what they prepare, so one process runs them.
test: simgrid browser
	@$(MAKE) --no-print-directory -j 2 lint kernels
	@$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile -rs

# What the main job needs is compiled once and kept; else each of the tests' processes would do it.
kernels: $(VENV)/.installed-test
	@$(BIN)/python -m simulator --topology nvswitch16 --workload moe128 >/dev/null

# In an environment of its own, since its libraries are not ours: 500 MB and a minute or two. The
# same figures by its definitions are checked in `make test`.
hta: $(VENV)/.installed-test
	@[ -x .venv-hta/bin/python ] || { echo "set-up: installing HolisticTraceAnalysis" >&2; \
	  $(PYTHON) -m venv .venv-hta && \
	  .venv-hta/bin/python -m pip --quiet install HolisticTraceAnalysis==0.5.0 || \
	  { rm -rf .venv-hta; exit 1; }; }
	@$(BIN)/python -m pytest tests/results/test_export.py

bench: $(VENV)/.installed
	@$(BIN)/python -m benchmarks

lint: $(VENV)/.installed-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# No stamp: a kept .venv may be used on a machine without it. SIMGRID= skips the set-up.
SIMGRID := libsimgrid-dev g++
simgrid:
	@if [ -f /usr/include/simgrid/s4u.hpp ] && command -v g++ >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ -n "$(SIMGRID)" ]; then \
	  echo "set-up: installing $(SIMGRID), with which the network is compared" >&2; \
	  { apt-get -qq -o Acquire::Retries=1 update && DEBIAN_FRONTEND=noninteractive apt-get -qq \
	    install -y --no-install-recommends $(SIMGRID); } >/dev/null 2>&1 || \
	  echo "set-up: $(SIMGRID) could not be installed; the tests against SimGrid will say so" >&2; \
	else echo "set-up: no SimGrid here; the tests against it are left out" >&2; fi

# BROWSER= skips the set-up.
BROWSER := chromium
browser:
	@if { command -v chromium || command -v google-chrome; } >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ -n "$(BROWSER)" ]; then \
	  echo "set-up: installing $(BROWSER), in which the pictures are opened" >&2; \
	  { apt-get -qq -o Acquire::Retries=1 update && DEBIAN_FRONTEND=noninteractive apt-get -qq \
	    install -y --no-install-recommends $(BROWSER); } >/dev/null 2>&1 || \
	  echo "set-up: $(BROWSER) could not be installed; the tests of the pictures will say so" >&2; \
	else echo "set-up: no Chromium here; the tests that open pictures are left out" >&2; fi

format: $(VENV)/.installed-test
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

wheel: $(VENV)/.installed-test
	@rm -rf build dist
	@$(BIN)/python -m build --quiet --wheel --no-isolation >/dev/null
	@ls dist/*.whl

clean:
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean
	@rm -rf $(VENV) .venv-hta

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "set-up: $(PYTHON) must be Python 3.11 or later; name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "set-up: $(PYTHON) has no venv; install it, as in: apt install python3-venv" >&2; exit 1; }
	@echo "set-up: making $(VENV) and installing the simulator and its libraries into it" >&2
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# One chain of stamps, so that two pips never run at once under make -j.
$(VENV)/.installed: setup.cfg pyproject.toml $(VENV)/.created
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "set-up: installing the test tools into $(VENV)" >&2
	@$(PIP) install --editable '.[test]'
	@touch $@
