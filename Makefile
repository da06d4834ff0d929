PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: repro test test-clusters clean

repro: $(VENV)/installed  ## the default grid, from data to tables
	PATH="$(CURDIR)/$(BIN):$$PATH" infotok sweep --jobs $(JOBS)

test: $(VENV)/installed  ## ruff, types and the test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest --numprocesses $(JOBS) --dist loadgroup

test-clusters: $(VENV)/installed  ## a cluster of Ray and an executor of Slurm on this machine: some minutes
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest -m clusters

$(VENV)/installed: requirements.lock requirements-nodeps.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -r requirements.lock
	@# lmms-eval also asks for torchvision and much else that a run of ours needs not; what it does need is in the lock.
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps -r requirements-nodeps.lock
	@# pip compiles on one core. Packages also hold templates that are no Python, which compileall counts as errors.
	@$(BIN)/python -m compileall -qq -j 0 -x /tests/ $(VENV)/lib || true
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

clean:  ## everything but the environment
	rm -rf runs .ckpt mlflow.db mlartifacts
