.DEFAULT_GOAL := help
.PHONY: help check format test threads slow faults gpu peer-tests check-lowest
PYTHON ?= python
LOWEST := .venv-lowest
# Training, and what it rests on: where the number of threads changes the order of sums, or which threads there are
THREADED := tests/finetuning tests/data/test_workers.py $(addprefix tests/training/test_,trainer.py distributed.py \
	large_batch.py checkpoints.py) $(addprefix tests/model/test_,sigreg.py objectives.py modeling.py)

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

threads:  ## Run the tests of training with two and with four threads (with as many processes as cores there is one)
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive $(PYTHON) -m pytest $(THREADED)
	OMP_NUM_THREADS=4 OMP_WAIT_POLICY=passive $(PYTHON) -m pytest $(THREADED)

slow:  ## Run the slow tests
	$(PYTHON) -m pytest -m slow

faults:  ## Kill, stop and starve training runs, and compare what they leave with runs that nothing happened to
	$(PYTHON) -m pytest tests/faults -m "slow or not slow" -n 0

gpu:  ## Run the tests that need an accelerator
	$(PYTHON) -m pytest -m gpu -n 0

peer-tests:  ## Run transformers' own common tests on every class (pip fetches their sources)
	$(PYTHON) tests/peer/fetch.py
	$(PYTHON) -m pytest tests/peer -n 2 -W default

check-lowest:  ## Run the tests on the lower bounds of pyproject.toml, in a virtual environment of their own
	$(PYTHON) -m venv --clear $(LOWEST)
	$(PYTHON) tests/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --constraint $(LOWEST)/constraints.txt ".[test]"
	$(LOWEST)/bin/python -m pytest -W default
