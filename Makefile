# Rollcall's tasks. They need make and Python 3.11 or newer; all the rest goes into .venv.

.DEFAULT_GOAL := help
SHELL := /bin/sh

VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
READY := $(VENV)/.ready

# The first of these that is new enough and can make environments; `make PYTHON=/path/to/python3 ...` names one.
PYTHON ?=
CANDIDATES := $(or $(PYTHON),python3.14 python3.13 python3.12 python3.11 python3)

# Passed on to the command behind a target: make test ARGS="-k relay -x", make demo ARGS=--tamper
ARGS ?=

# The interpreter above is the one; an environment that happens to be active is not ours.
export UV_PYTHON_DOWNLOADS := never
export UV_PROJECT_ENVIRONMENT := $(VENV)
unexport VIRTUAL_ENV
unexport PYTHONPATH
unexport PYTHONHOME

.PHONY: help setup demo test test-long test-lives test-faults test-soak check bench bench-full bench-api bench-client bench-replay bench-promote wheel

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## Make .venv with everything in it

demo: $(READY) ## Run a real job on real Kafka and PostgreSQL (ARGS=--tamper shows failures)
	@$(BIN)/rollcall demo $(ARGS)

test: $(READY) ## Run the tests (ARGS="-k word" chooses)
	$(BIN)/pytest -n 2 --dist worksteal -m "not long" $(ARGS)

test-long: $(READY) ## Run the long tests: whole installations brought up and down, pages, packages, examples
	$(BIN)/pytest -n 2 --dist worksteal -m long $(ARGS)

test-lives: $(READY) ## One log of 50,000 messages in micro-batches of 1, 7 and 5,000, and with crashes: some minutes
	ROLLCALL_LIVES=50000 $(BIN)/pytest -q tests/test_lives.py $(ARGS)

test-faults: $(READY) ## Kill, cut and starve it: 5 rounds of each fault, 200,000 results each: hours (ARGS=--short: 5 minutes)
	$(BIN)/python -m tests.faults $(ARGS)

test-soak: $(READY) ## 20 rounds of each fault, 200,000 results each: a day (ARGS="--resume FILE" goes on where it was stopped)
	$(BIN)/python -m tests.faults --rounds 20 $(ARGS)

check: $(READY) ## Lint, formatting, types, layers, lock file
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(UV) lock --check --python $(BIN)/python

bench: $(READY) ## Measure the pipeline beside Kafka Streams and what bounds it: two minutes
	$(BIN)/python -m bench $(ARGS)

bench-full: $(READY) ## Measure everything beside everything, and write docs/performance.md (hours; ARGS="--only latency")
	@$(BIN)/python -m bench.full $(ARGS)

bench-api: $(READY) ## Measure the HTTP API beside a bare route, on 100,000 batches and 10,000,000 items
	$(BIN)/python -m bench.api $(ARGS)

bench-replay: $(READY) ## Replay 1,000,000 results beside their live intake, then killed and resumed ten times
	$(BIN)/python -m bench.replay $(ARGS)

bench-promote: $(READY) ## Promote ten times while 20,000 results a second flow, and print how long writers waited
	$(BIN)/python -m bench.promote $(ARGS)

bench-client: $(READY) ## Measure a job of the client beside a bare aiokafka producer
	$(BIN)/python -m bench.client $(ARGS)

wheel: $(READY) ## Build the wheels of the service, its native part and the client into dist/
	@rm -rf native/build
	$(UV) build --wheel --all-packages --out-dir dist --python $(BIN)/python

# A file newer than what it was made from: a second call costs nothing.
$(READY): pyproject.toml client/pyproject.toml native/pyproject.toml $(wildcard native/src/*/*.p*) uv.lock | $(UV)
	@rm -f native/src/*/*.so
	$(UV) sync --locked --all-packages --reinstall-package rollcall-native --python $(BIN)/python
	@touch $@

$(UV):
	@python=; unusable=; \
	for each in $(CANDIDATES); do \
		"$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
		if "$$each" -c 'import ensurepip, venv' >/dev/null 2>&1; then python=$$each; break; fi; \
		unusable=$${unusable:-$$each}; \
	done; \
	if [ -z "$$python" ] && [ -n "$$unusable" ]; then \
		echo "make: $$unusable cannot make virtual environments: it has no ensurepip." >&2; \
		echo "      On Debian and Ubuntu: apt install python3-venv" >&2; \
		exit 1; \
	elif [ -z "$$python" ]; then \
		echo "make: no Python 3.11 or newer found (looked for: $(CANDIDATES))." >&2; \
		echo "      Install one, or name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; \
		exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$python" -V)"; \
	"$$python" -m venv --clear $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
