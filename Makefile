# make demo   the main job on the music that ships with the project, some three minutes
# make test   every test that this machine allows (real corpora through MIDIBERT_CORPORA)
# make lint   ruff and mypy
# Each creates .venv and installs requirements.txt and the command midibert when they are missing or older; a second call installs nothing.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
OUT ?= $(CURDIR)/output
CODE := midibert_ray jobs cluster tests benchmarks docs
FAST := not ray and not corpora and not slow and not cluster
RAY := ray or cluster
PYTEST := $(BIN)/python -m pytest
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist worksteal

# pytest keeps the tests as it has compiled them: doing that again is a quarter of all that collecting them takes.
unexport PYTHONDONTWRITEBYTECODE

# Ray's usage statistics need a network, and its tests none.
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: demo test test-ray test-others test-fast lint format clean

demo: $(READY)
	$(BIN)/python jobs/pipeline.py --preset demo storage.root=$(OUT)

# Tests that start Ray fill a machine and wait much: they run one after the other, and all others in what they leave.
# Ray's workers have a low priority of their own, which would give way to the others.
test: $(READY)
	$(MAKE) --jobs=2 --keep-going test-ray test-others

test-ray: $(READY)
	RAY_worker_niceness=0 $(PYTEST) -m "$(RAY)"

test-others: $(READY)
	nice -n 19 $(PYTEST) $(SIDE_BY_SIDE) -m "not ($(RAY))"

test-fast: $(READY)
	$(PYTEST) $(SIDE_BY_SIDE) -m "$(FAST)"

lint: $(READY)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

clean:
	rm -rf $(VENV) $(OUT)

# torch first: a build that is there must not be replaced by what another package would pull in.
$(READY): requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(READY)
