PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run test check build fuzz crash lives mutants bench-gateway bench-engine bench-auction bench-log lock clean

run: build  ## start the exchange with its own Postgres and run the main job
	$(BIN)/cux demo $(ARGS)

test: build  ## run the tests
	$(BIN)/pytest $(ARGS)

check: $(READY)  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

build: $(READY)  ## compile the engine; without a C compiler it runs interpreted
	@$(BIN)/python setup.py -q build_ext --inplace

fuzz: build  ## the engine against its slow twin, for long
	HYPOTHESIS_PROFILE=long $(BIN)/pytest --timeout 0 tests/test_engine_properties.py $(ARGS)

crash: build  ## kill the processes of a real exchange under load, BUDGET times, drawn by SEED
	$(BIN)/python -m tests.campaigns.crash $(SEED:%=--seed %) $(BUDGET:%=--budget %) $(ARGS)

lives: build  ## BUDGET lives of the exchange on a simulated machine; one of them, with its story, by SEED
	$(BIN)/python -m tests.campaigns.lives $(SEED:%=--seed %) $(BUDGET:%=--budget %) $(ARGS)

# In a copy: what is mutated is never committed, and the tests of the house do not read it.
mutants: $(READY)  ## what the tests of matching do not notice when it is mutated; of BUDGET mutants, drawn by SEED
	rm -rf .mutation && mkdir .mutation
	cp -r pyproject.toml README.md benchmarks exchange gateway schemas settlement tests .mutation
	cd .mutation && CUX_ENGINE=interpreted ../$(BIN)/python -m tests.mutants \
		$(SEED:%=--seed %) $(BUDGET:%=--budget %) $(ARGS)

bench-gateway: build  ## what an order costs through the gateway, beside a bare WebSocket echo
	$(BIN)/python -m benchmarks.gateway

bench-engine: $(READY)  ## operations a second of the engine, beside other matching engines for Python
	$(BIN)/python -m benchmarks.engine $(ARGS)

bench-auction: build  ## real day-ahead curves through the call auction, and what a call costs to check
	$(BIN)/python -m benchmarks.auction

bench-log: $(READY)  ## durable commands a second, their delay, recovery, beside a bare loop and Postgres
	$(BIN)/python -m benchmarks.log $(ARGS)

lock: $(READY)  ## pin every dependency by version and hash
	$(BIN)/pip install -q uv
	$(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--all-extras --universal --python-version 3.11 pyproject.toml -o constraints.txt

clean:  ## remove what the targets made
	rm -rf $(VENV) .cux .mutation build exchange/__compiled__ exchange/*.so benchmarks/.cache

$(READY): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r constraints.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)
