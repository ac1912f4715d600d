# Agent Outbox. `make` or `make help` lists what can be done here.
# Needs Python 3.11+, make and git. uv is used from PATH, or put into .uv/ on first use (see .ci/uv).

UV := .ci/uv
RUN := $(UV) run --no-sync
empty :=
space := $(empty) $(empty)
# Every member's source folder, so that mypy names modules as Python does.
export MYPYPATH := $(subst $(space),:,$(strip $(wildcard libs/*/src services/*/src)))
# Extra arguments: `make test ARGS="tests/unit -k digest"`, `make up ARGS="--port 8080"`.
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help sync demo up test model model-long fault fault-tests fault-battery lint lint-client types format bench compat-agent-ledger build clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' Makefile

sync: ## Install exactly what the lock names into .venv (uv first, where it is absent).
	@$(UV) sync --locked --quiet

demo: sync ## Play an agent through faults, plain and through Outbox, and count the effects.
	@$(RUN) outbox demo $(ARGS)

up: sync ## Run Postgres, Redis, API, worker and sandbox provider on this machine until Ctrl-C.
	@$(RUN) outbox up $(ARGS)

# Most tests wait for servers, leases and time-outs, so a process per core keeps the cores at work.
PYTEST := $(RUN) pytest -n auto --dist loadfile
TESTS := tests/unit tests/rules tests/model tests/integration tests/e2e tests/load tests/fault/battery tests/fault/test_battery.py

# A whole run also fails where a test that a page names as what holds a promise was skipped or is gone.
test: sync ## Run every test but the long fault tests (ARGS="tests/unit" for a part).
	$(PYTEST) $(or $(ARGS),$(TESTS) --held=docs)

model: sync ## Search the protocol's model: what must hold, and that every guard is missed when it is removed.
	$(RUN) python -m tests.model.selftest
	$(RUN) python -m tests.model.checks $(ARGS)

model-long: sync ## Search the model with its wide bounds, and drive the store against its machine for longer.
	$(RUN) python -m tests.model.selftest
	$(RUN) python -m tests.model.checks --cost 2 $(ARGS)
	OUTBOX_TEST_HYPOTHESIS=long $(RUN) pytest tests/integration/store/test_state_machine.py

fault: sync fault-tests fault-battery ## Run the fault tests, then the fault battery (ARGS are the battery's).

fault-tests: sync ## Run the hand-written fault tests, the bounded battery and its negative controls (about half as long as `make test`).
	$(PYTEST) tests/fault --held=docs

fault-battery: sync ## Run the battery alone (ARGS="--operations 100000 --seed 7 --evidence docs/evidence/faults.md").
	$(RUN) python -m tests.fault.battery $(ARGS)

lint: sync types lint-client ## Check style, formatting, types, the import rule and the client under Python 3.10.
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) lint-imports

lint-client: sync ## Check that the client package keeps to Python 3.10.
	$(RUN) ruff check --target-version py310 libs/sdk
	$(RUN) mypy --python-version 3.10 libs/sdk/src

types: sync ## Check all types strictly.
	$(RUN) mypy $(wildcard libs/*/src services/*/src) tests .ci/install_uv.py

format: sync ## Rewrite the code in the one format.
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

bench: sync ## Measure calls per second and added latency, beside another ledger library.
	$(RUN) python -m tests.load.bench $(ARGS)

compat-agent-ledger: sync ## Run agent-ledger's own published tests against our module of its names, and import its table.
	$(RUN) python -m tests.compat.run $(ARGS)

build: sync ## Build a wheel of every member into dist/.
	rm -rf dist
	$(UV) build --all-packages --wheel --out-dir dist

clean: ## Remove what was built and cached; .venv and .uv stay.
	rm -rf dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find libs services tests .ci -name __pycache__ -type d -prune -exec rm -rf {} +
