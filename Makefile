# make run    start Brain on an embedded PostgreSQL     make test      the tests, with coverage
# make check  lint, types, import order                 make contract  the two regression contracts
# make faults the tests that want the machine for themselves: floods, storms, kills (ten minutes)
# make fuzz   hostile bytes, for minutes                make conformance  the Autobahn test suite (Python 2.7)
# make bench  every benchmark, an hour or so (QUICK=--quick: a smoke test)
# make torture  the oracle, for 20 minutes            make soak      200 000 connections come and go
# make lock   pin the dependencies again                make clean     remove what the others made, but for the data

.DELETE_ON_ERROR:
.PHONY: run test faults check contract bench fuzz conformance torture soak lock clean

VENV := .venv
BIN  := $(VENV)/bin

# The newest Python that is at least 3.11, or what PYTHON= names.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

run: $(VENV)/run.done
	@$(BIN)/brain serve

test: $(VENV)/dev.done $(VENV)/node.done
	@rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest -m "not faults" -n 2 --dist loadfile
	@$(BIN)/coverage combine -q && $(BIN)/coverage report

faults: $(VENV)/dev.done $(VENV)/node.done
	$(BIN)/pytest -m faults

contract: $(VENV)/dev.done $(VENV)/node.done
	BRAIN_TEST_SECOND=1 $(BIN)/pytest -m contract

check: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Seconds for each law under atheris, and examples of each law by hypothesis.
FUZZ_SECONDS  ?= 60
FUZZ_EXAMPLES ?= 3000

fuzz: $(VENV)/dev.done
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/pytest tests/fuzz tests/integration/api/test_openapi.py
	@$(BIN)/pip install --quiet --disable-pip-version-check --only-binary :all: --no-deps --require-hashes \
		-r tests/fuzz/requirements.txt || true
	$(BIN)/python -m tests.fuzz.guided $(FUZZ_SECONDS)

conformance: $(VENV)/dev.done
	$(BIN)/python -m tests.conformance.autobahn .autobahn

# Each program stands alone: python -m benchmarks.NAME. What this machine cannot build is skipped, and said.
BENCHMARKS ?= fanout latency connections writers ingest growth pauses polling stalled silent

bench: $(VENV)/dev.done
	@$(BIN)/python -m benchmarks.peers
	@failed=; for name in $(BENCHMARKS); do \
		echo "== $$name"; $(BIN)/python -m benchmarks.$$name $(QUICK) || failed="$$failed $$name"; \
	done; $(BIN)/python -m benchmarks.report $(QUICK); test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

# TORTURE="--minutes 1 --seed 7" for a shorter one, or one again.
torture: $(VENV)/dev.done
	$(BIN)/python -m tests.oracle.torture $(TORTURE)

soak: $(VENV)/dev.done
	$(BIN)/python -m benchmarks.soak

# The virtual environment: made once, and again when a lock changes. dev is a superset of run.
$(VENV)/run.done: requirements.lock pyproject.toml
	@$(call install,requirements.lock)
	@touch $@

$(VENV)/dev.done: requirements-dev.lock pyproject.toml
	@$(call install,requirements-dev.lock)
	@touch $(VENV)/run.done $@

# wscat and tsc, where there is Node; the tests that need them say why they are skipped where there is none.
$(VENV)/node.done: tests/support/node/package-lock.json | $(VENV)/dev.done
	@if command -v npm >/dev/null; then cd tests/support/node && npm ci --silent --no-audit --no-fund; \
	else echo "npm not found: the tests with wscat and tsc will be skipped"; fi
	@touch $@

define install
set -e; \
test -n "$(PYTHON)" || { echo "Brain needs Python 3.11 or newer. Install one, or name it: make PYTHON=/path/to/python3"; exit 1; }; \
test -x $(BIN)/pip || { echo "making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); } || \
	{ rm -rf $(VENV); echo "python3 -m venv failed: on Debian and Ubuntu, apt install python3-venv"; exit 1; }; \
echo "installing $(1) (a minute, once)"; \
$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r $(1); \
$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
endef

lock: $(VENV)/dev.done
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --no-annotate --group run -o requirements.lock pyproject.toml --extra embedded
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --no-annotate --group dev -o requirements-dev.lock pyproject.toml --extra embedded

clean:
	rm -rf $(VENV) benchmarks/build benchmarks/peers/node_ws/node_modules .autobahn .fuzz node_modules tests/support/node/node_modules .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis .coverage*
