# The only commands that people and CI share. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo up test check lint types proto-check proto-lint generate format interop nightly bench bench-peers clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make the virtual environment and install everything (done by the others as needed)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Muster needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once; a minute or two)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --group dev --editable ".[local]"
	@touch $@

demo: $(STAMP) ## start the whole plane, let the SAFE team decide on a flood, show it, verify it, stop
	@$(BIN)/muster demo

up: $(STAMP) ## start the plane and keep it running; Ctrl-C stops it
	@$(BIN)/muster up

# The tests' Redis, where none is on PATH: unpacked, not installed, so that nothing is started on this machine.
DEBIAN := .tools/debian
$(DEBIAN)/.unpacked:
	@sh benchmarks/peers/unpack_debian.sh $(DEBIAN) redis-server
	@mkdir -p $(DEBIAN) && touch $@

test: $(STAMP) $(DEBIAN)/.unpacked ## every test of the Python side
	@$(BIN)/python -m pytest -m "not nightly and not interop" --numprocesses 3 --dist loadfile

check: lint types proto-check proto-lint ## lint, types, proto lint and freshness

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)
	@$(BIN)/mypy

proto-check: $(STAMP)
	@$(BIN)/python proto/generate.py --check

# buf's binary comes as an npm package. google/rpc comes from where the generator takes it, too, so that
# nothing is fetched while linting.
BUF := .tools/node_modules/.bin/buf
$(BUF):
	@command -v npm >/dev/null || { echo "the proto lint needs npm (for @bufbuild/buf): install Node.js, or run make lint types proto-check"; exit 1; }
	@npm install --silent --no-audit --no-fund --no-package-lock --prefix .tools @bufbuild/buf@1.75.0

proto-lint: $(STAMP) $(BUF)
	@$(BIN)/python proto/lint.py $(BUF)

GRPCURL := .tools/bin/grpcurl
$(GRPCURL):
	@command -v go >/dev/null || { echo "the interop checks need Go (for grpcurl)"; exit 1; }
	@GOBIN=$(CURDIR)/.tools/bin go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3

interop: $(STAMP) $(GRPCURL) ## checks with tools that others wrote: grpcurl, Go's verifier of transparency logs
	@PATH="$(CURDIR)/.tools/bin:$$PATH" $(BIN)/python -m pytest -m interop tests/interop --timeout=300

generate: $(STAMP) ## regenerate proto/gen
	@$(BIN)/python proto/generate.py

format: $(STAMP) ## let ruff format and fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

nightly: $(STAMP) $(DEBIAN)/.unpacked ## long campaigns
	@$(BIN)/python -m pytest -m nightly --timeout=3600 -o faulthandler_timeout=0

bench: $(STAMP) ## measure, ours and peers in turn: make bench NAME=messages (no NAME: list the names)
	@$(BIN)/python -m benchmarks $(or $(NAME),--help)

# The peers' environment is their own: nothing of it is ever imported by ours. Debian's packages are unpacked
# into it, not installed, so that no service is started on this machine.
BENCH := .bench-venv
bench-peers: $(BENCH)/.installed ## install what the benchmarks compare with

$(BENCH)/.installed: benchmarks/peers-constraints.txt
	@test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	@echo "installing the peers into $(BENCH) (once; a minute or two)"
	@$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< --upgrade pip
	@$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< \
	  nats-py 'redis[hiredis]' celery 'dask[distributed]' ray ortools
	@sh benchmarks/peers/unpack_debian.sh $(BENCH)/debian nats-server redis-server
	@touch $@

clean: ## remove the virtual environments and caches
	@rm -rf $(VENV) .tools .bench-venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
