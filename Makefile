# Everything sets itself up in .venv: python3 with venv, and make, are enough.

PYTHON ?= python3
BIN := .venv/bin
# The tests start many interpreters: each would compile all modules again, where nobody may write bytecode beside them.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/.venv/bytecode
# Seconds after which a test stops waiting for an event. Other programs may use the processors, too.
export PQCORE_TEST_PATIENCE ?= 60
# Tests run pytest in other folders, too, where it would load a plugin that takes a second and is not used.
export PYTEST_ADDOPTS ?= -p no:ddtrace
LOWEST := .venv/lowest
EXTRAS := serializers_and_wrappers frameworks django django_admin django_worker $(addprefix integration_,fastapi flask sqlalchemy trio)

help:  ## show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## / - /'

demo: .venv/ready  ## move real jobs over every driver, on an embedded PostgreSQL, and kill a worker
	$(BIN)/python -m pqcore.demo

# Five parts run concurrently, as tests often wait, each with a server of its own; the last one prints as it goes.
test: .venv/ready .venv/browser  ## run the whole test suite, on embedded PostgreSQL servers
	@mkdir -p reports; status=0; parts=; \
	start() { \
	  name=$$1; shift; \
	  $(BIN)/python -m pytest --durations=20 --pqcore-report=reports/$$name "$$@" > reports/$$name.log 2>&1 & parts="$$parts $$!"; \
	}; \
	start tests-a-to-c tests/test_[a-c]*.py; \
	start tests-d-to-o tests/test_[d-o]*.py; \
	start tests-p-to-z tests/test_[p-z]*.py; \
	start conformance-psycopg pqcore/testing/suite --pqcore-backend psycopg; \
	trap 'kill $$parts' INT TERM; \
	$(BIN)/python -m pytest --durations=20 pqcore/testing/suite --pqcore-backend psycopg2 --pqcore-backend asyncpg || status=$$?; \
	for part in $$parts; do wait $$part || status=$$?; done; \
	cat reports/conformance-psycopg.log reports/tests-*.log; exit $$status

PROSE := README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs pqcore pqcore_backends benchmarks examples tests

lint: .venv/ready  ## check style, formatting, types and English
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell $(PROSE)

docs: .venv/ready  ## write the documents as a site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

conformance: .venv/ready  ## run the conformance suite alone, and write its report
	$(BIN)/python -m pytest --pyargs pqcore.testing.suite

chaos: .venv/ready  ## put and take while clients, connections and the server fail, and prove that nothing is lost
	$(BIN)/python -m tests.chaos

ROWS ?= 200000

upgrade: .venv/ready  ## upgrade a table of ROWS rows that is in use, from an older build and from pq, and go back
	$(BIN)/python -m tests.upgrade --rows $(ROWS)

# What is wrong must be found: every other run leaves out a part of the protocol. A cycle is a job that waits without end.
model:  ## go through every order of events of leases and of admission, with spin
	@command -v spin >/dev/null || { echo "spin is missing: apt-get install spin"; exit 1; }
	@folder=$$(mktemp -d) && models=$(CURDIR)/tests/model && cd $$folder && trap 'rm -r '$$folder EXIT && \
	check() { echo "$$1:"; spin $$3 -a $$models/$$2.pml && $(CC) -w -O2 -DCOLLAPSE -DNFAIR=4 $$4 -o pan pan.c && ./pan -m2000000 $$5 > found; \
	  grep -E 'errors:|states, stored' found; grep -q 'errors: '$$6 found; } && \
	check "leases" lease "" -DSAFETY "" 0 && \
	check "leases, without the fencing token" lease -DFENCED=0 -DSAFETY "" 1 && \
	check "admission" admission "" -DSAFETY "" 0 && \
	check "admission, by key rows that may have changed" admission -DVERSIONED=0 -DSAFETY "" 1 && \
	check "admission, out of the order of a group" admission -DHEADS=0 -DSAFETY "" 1 && \
	check "jobs leased ahead" ahead "" -DSAFETY "" 0 && \
	check "jobs leased ahead, by key rows that may have changed" ahead -DVERSIONED=0 -DSAFETY "" 1 && \
	check "jobs leased ahead, all started" ahead -DNUMBERED=0 -DSAFETY "" 1 && \
	check "jobs leased ahead, and not counted" ahead -DCOUNTED=0 -DSAFETY "" 1 && \
	check "admission, that goes on" admission "-DPROGRESS -DTAKERS=1 -DWIDE=1" "" "-a -f" 0 && \
	check "admission, that goes on, without reservations" admission "-DPROGRESS -DTAKERS=1 -DWIDE=1 -DRESERVED=0" "" "-a -f" 1

matrix: .venv/ready  ## run the conformance suite over servers, poolers, drivers and Pythons; takes hours
	$(BIN)/python -m tests.matrix

matrix-short: .venv/ready  ## run a few cells of it, each with one driver; takes some minutes
	$(BIN)/python -m tests.matrix --short --again

# Overrides, as other requirements of ours, and of the tools of the tests, ask for newer versions of some.
lowest: .venv/ready  ## run the tests of the extras with the lowest versions that pyproject.toml allows
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	test -x $(LOWEST)/bin/python || $(BIN)/uv venv --quiet --seed --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --all-extras --no-annotate --no-header --no-emit-index-url \
	  --python $(LOWEST)/bin/python --output-file $(LOWEST)/lowest.txt pyproject.toml
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --override $(LOWEST)/lowest.txt --requirement requirements-dev.txt
	$(LOWEST)/bin/python -m pytest $(addprefix tests/test_,$(addsuffix .py,cli instruments mcp periodic plugins web $(EXTRAS)))

plans: .venv/ready  ## explain every statement on a table of millions of rows, into docs/plans.md
	$(BIN)/python -m benchmarks.plans --markdown docs/plans.md

bench: .venv/ready  ## measure everything over every driver, and other queues too; writes reports/bench.html
	@status=0; \
	$(BIN)/pqcore bench --json reports/bench.json --html reports/bench.html || status=$$?; \
	$(BIN)/python -m benchmarks.peers --json reports/peers.json || status=$$?; \
	exit $$status

picture: .venv/ready .venv/browser  ## draw the picture of the web page in the documents
	$(BIN)/python -m tests.web_picture docs/images/web.png

figures: .venv/ready  ## measure all that `make bench` does, into the pages on performance
	$(BIN)/pqcore bench --no-targets --json reports/bench.json --html reports/bench.html --markdown docs
	$(BIN)/python -m benchmarks.peers --json reports/peers.json --markdown docs

dist: .venv/ready  ## build the distributions, and check them, into dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

# With hashes, for all supported Pythons; what is installed from it is what was looked at.
lock: .venv/ready  ## write requirements-lock.txt again, with the newest versions
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-emit-index-url \
	  --no-emit-package pqcore --no-annotate --no-header --output-file requirements-lock.txt requirements-dev.txt

audit:  ## ask whether anything in requirements-lock.txt has a known vulnerability
	test -x .venv/audit/bin/pip-audit || { $(PYTHON) -m venv .venv/audit && .venv/audit/bin/pip install --quiet pip-audit; }
	.venv/audit/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements-lock.txt

clean:  ## remove what the above made
	rm -rf .venv build dist reports site *.egg-info .pytest_cache .mypy_cache .ruff_cache

# The marker is made last, so an interrupted set-up is taken up again.
.venv/ready: pyproject.toml requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@

# For the tests of the web page: a browser that there is, or Debian's, or Playwright's.
.venv/browser: .venv/ready
	@for name in chromium chromium-browser google-chrome; do $$name --version 2>/dev/null && exit; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -q && apt-get install -y -q --no-install-recommends chromium && chromium --version && exit; \
	fi; \
	$(BIN)/playwright install chromium-headless-shell
	@touch $@

.PHONY: help demo test lint docs conformance chaos upgrade model matrix matrix-short lowest plans bench picture figures dist lock audit clean
