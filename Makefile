.DEFAULT_GOAL := help
.PHONY: help check format test slow faults gpu peer-tests check-lowest
PYTHON ?= python
LOWEST := .venv-lowest

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

check:  ## Lint and check the formatting
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format:  ## Mend what the linter can mend
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

test:  ## Run the project's tests but the slow ones
	$(PYTHON) -m pytest

slow:  ## Run the slow tests
	$(PYTHON) -m pytest -m slow

faults:  ## Kill, stop and starve training runs, and compare what they leave with runs that nothing happened to
	$(PYTHON) -m pytest tests/faults -m "slow or not slow"

gpu:  ## Run the tests that need an accelerator
	$(PYTHON) -m pytest -m gpu

peer-tests:  ## Run transformers' own common tests on every class (pip fetches their sources)
	$(PYTHON) tests/peer/fetch.py
	$(PYTHON) -m pytest tests/peer -n 2 -W default

check-lowest:  ## Run the tests on the lower bounds of pyproject.toml, in a virtual environment of their own
	$(PYTHON) -m venv --clear $(LOWEST)
	$(PYTHON) tests/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --constraint $(LOWEST)/constraints.txt ".[test]"
	$(LOWEST)/bin/python -m pytest -W default
