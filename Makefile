# make train: from Python 3.11 alone to a trained model. make test: every check. Both may be run again at any time.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cat requirements.lock pyproject.toml | cksum | cut -d' ' -f1)
CODE := cgrpo_core flows tasks storage tests benchmarks
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: train test install check unit e2e clean-venv

train: install
	@$(BIN)/cgrpo model critique-grpo --profile cpu > /dev/null
	@$(BIN)/cgrpo run critique-grpo --profile cpu

test: check unit e2e

install: $(STAMP)

# torch first, and nothing resolved: the lock is the whole list, and resolving it takes many times as long.
$(STAMP): requirements.lock pyproject.toml
	@echo "installing the locked dependencies into $(VENV): about 3 minutes and 4 GB, once"
	@start=$$SECONDS; \
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV); \
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11"; exit 2; }; \
	$(BIN)/pip install -qq --no-deps $$(grep '^torch==' requirements.lock) && \
	$(BIN)/pip install -qq --no-deps -r requirements.lock && \
	$(BIN)/pip install -qq --no-deps --no-build-isolation -e . && \
	rm -f $(VENV)/.installed-* && touch $@ && echo "installed in $$((SECONDS - start)) s"

check: install
	@echo "format, lint, types, import contracts"
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: install
	@echo "unit tests: seconds"
	$(BIN)/python -m pytest -m "not e2e and not gpu"

e2e: install
	@echo "end-to-end tests with real engines: about 30 minutes on 2 cores"
	$(BIN)/python -m pytest -m "e2e and not gpu"

clean-venv:
	rm -rf $(VENV)
