.DEFAULT_GOAL := help
.PHONY: help check format test peer-tests
PYTHON ?= python

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

check:  ## Lint and check the formatting
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format:  ## Mend what the linter can mend
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

test:  ## Run the project's tests
	$(PYTHON) -m pytest

peer-tests:  ## Run transformers' own common tests on every class (pip fetches their sources)
	$(PYTHON) tests/peer/fetch.py
	$(PYTHON) -m pytest tests/peer -n 2
