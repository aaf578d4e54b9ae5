# `make help` lists what there is. Go and make are enough for everything but `ci`'s test-clients;
# each tool is pinned in tools/go.mod, and built from source once for each state of that file.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

GO    ?= go
BIN   := $(CURDIR)/bin
TOOLS := $(CURDIR)/.cache/tools/$(shell { cat tools/go.mod tools/go.sum; $(GO) env GOVERSION; } | cksum | cut -d' ' -f1)
FRESH := $(CURDIR)/.cache/generated

# Tests that need a tool look here.
export RAYLINK_TOOLS := $(TOOLS)

# Modules of their own, beside the one of this directory.
MODULES := $(patsubst %/go.mod,%,$(wildcard bench/go.mod examples/*/go.mod internal/*/go.mod deploy/*/go.mod))
# The official Connect conformance suite, as internal/conformance pins it: its sources with hooks,
# and what is built of them.
SUITE := $(CURDIR)/.cache/conformance/suite
CONFORMANCE := $(CURDIR)/.cache/conformance/bin
# -race where a C compiler is found.
RACE = $(shell $(GO) test -race -run='^$$' errors >/dev/null 2>&1 && echo -race)
# The inputs of `buf generate`: the project's own schemas, each example's, and the benchmark's.
TEMPLATES := $(wildcard buf.gen*.yaml internal/*/buf.gen*.yaml examples/*/buf.gen*.yaml bench/buf.gen*.yaml)
# Where the drivers in other languages are.
CLIENTS := $(wildcard clients/test)

# Flags of the demo: make demo SEEDS=20, make demo ABLATE=pull, make demo PRIORITIZED=1.
SEEDS  ?=
ABLATE ?=
PRIORITIZED ?=
# Of test-hostile: for how long attacks are repeated; each happens once at least.
HOSTILE ?= 1s
# Of test-mutants: a pattern for the names of those to run.
MUTANTS ?=
# Of test-soak: how long, how many kills of the parameter server and of each storage (a fifth as
# many of the replay), how many rows of the replay, and what its choices follow from.
SOAK   ?= 30s
KILLS  ?= 50
ROWS   ?= 100000
SEED   ?=
# Flags of the benchmark: see bench/README.md.
BENCH      ?=
SYSTEMS    ?=
ROUNDS     ?=
DURATION   ?=
CPUPROFILE ?=
MEMPROFILE ?=
PLOT       ?=
SUMMARY    ?=

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the commands and examples into bin/
	@mkdir -p $(BIN)
	$(GO) build ./...
	$(GO) build -o $(BIN)/ ./cmd/... ./examples/...
	@for m in $(MODULES); do echo "$(GO) -C $$m build"; $(GO) -C $$m build -o $(BIN)/ ./...; done

# Runs a test command, and repeats at the end which tests failed.
tested = echo "$(1)"; log=$$(mktemp); $(1) 2>&1 | tee "$$log" || { awk -f .ci/failures.awk "$$log"; rm "$$log"; exit 1; }; rm "$$log"

# Packages that are tested here without the race detector: tests that read the source, and those of
# which test-soak runs all tests with it.
PLAIN := /internal/(prose|mutants|replaytest|soak)$$

# A regular expression of tests to leave out.
SKIP ?=
skip = $(if $(SKIP),-skip='$(SKIP)')

.PHONY: test
test: ## vet and run all tests that need only Go; with the race detector where a C compiler is found
	$(GO) vet ./...
	@if $(GO) test -race -run='^$$' errors >/dev/null 2>&1; then \
	  $(call tested,$(GO) test -vet=off -race -timeout=15m $(skip) $$($(GO) list ./... | grep -vE '$(PLAIN)')) && \
	  $(call tested,$(GO) test -vet=off -timeout=15m $(skip) $$($(GO) list ./... | grep -E '$(PLAIN)')); \
	else \
	  echo "No C compiler that works with cgo was found (CC=$$($(GO) env CC)): testing WITHOUT the race detector."; \
	  $(call tested,$(GO) test -vet=off -timeout=15m $(skip) ./...); \
	fi
	@for m in $(MODULES); do $(GO) -C $$m vet ./...; $(call tested,$(GO) -C $$m test -vet=off -timeout=15m ./...); done

.PHONY: test-invariants
test-invariants: ## the checks that cost too much always (-tags invariants)
	$(GO) test -tags=invariants -timeout=10m ./runtime ./runtime/internal/mailbox ./internal/invariants
	$(GO) test -tags=invariants -timeout=10m -run='^TestClient$$|^Example' ./services/storage

# Many of these tests wait for a bound on time, so that more of them than processors run at once.
.PHONY: test-mutants
test-mutants: ## show that tests detect faults: the mutants of internal/mutants; make test-mutants MUTANTS=tunnel/
	@$(call tested,$(GO) test -count=1 -timeout=30m -parallel=5 -run='^TestMutants$$/$(MUTANTS)' -v ./internal/mutants -mutants)

.PHONY: test-economy
test-economy: ## what a call may cost: allocations (without the race detector, which has its own), reads and writes
	$(GO) test -count=1 -run='Allocat|OneCall|Burst' -timeout=10m . ./runtime ./runtime/tunnel

.PHONY: test-hostile
test-hostile: ## attacks on a host, by frames and HTTP, with a bound on memory: make test-hostile HOSTILE=10m
	RAYLINK_HOSTILE=$(HOSTILE) $(GO) test -count=1 -timeout=0 -run='^TestHostile$$' -v .
	$(GO) test -count=1 -timeout=10m -run='TestMemoryHeldForHostileCaller|TestMemoryHeldForHostileServer|TestPeerThatReadsLate' ./runtime/tunnel

# The checks of the services restart processes, and wait for that most of the time.
.PHONY: test-soak
test-soak: ## three hosts under stress, the parameter server, the storage and the replay: make test-soak SOAK=10m KILLS=200 ROWS=10000000; SEED=N chooses what happens
	@$(MAKE) --no-print-directory soak-hosts
	@$(MAKE) --no-print-directory -j2 -Otarget soak-parameters soak-storage soak-replay

soak = $(call tested,$(GO) test $(RACE) -count=1 -timeout=0 $(1) -v $(2) $(if $(SEED),$(3)=$(SEED)))

.PHONY: soak-hosts soak-parameters soak-storage soak-replay
soak-hosts:
	@$(call soak,./internal/soak,-soak=$(SOAK),-soak.seed)
soak-parameters:
	@$(call soak,-run=Kills ./internal/parametertest,-kills=$(KILLS),-seed)
soak-storage:
	@$(call soak,-run=Kills ./internal/storagetest,-kills=$(KILLS),-seed)
soak-replay:
	@$(call soak,./internal/replaytest,-rows=$(ROWS) -kills=$(shell expr $(KILLS) / 5),-seed)

.PHONY: lint
lint: lint-text lint-go ## golangci-lint, buf lint and the rules of language

.PHONY: lint-text lint-go
lint-text: $(TOOLS)/buf
	$(TOOLS)/buf lint
	$(GO) test -count=1 ./internal/prose
lint-go: $(TOOLS)/golangci-lint
	$(TOOLS)/golangci-lint run ./...
	@for m in $(MODULES); do echo "golangci-lint in $$m"; (cd $$m && $(TOOLS)/golangci-lint run -c $(CURDIR)/.golangci.yml ./...); done

.PHONY: fix
fix: $(TOOLS)/golangci-lint ## format, and let the linters fix what they can
	$(TOOLS)/golangci-lint run --fix ./...

# Generated code is first made aside, so that a schema with a mistake does not lose the existing
# code.
.PHONY: fresh
fresh: $(SUITE) $(TOOLS)/buf $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-connect-go $(TOOLS)/protoc-gen-go-grpc $(TOOLS)/protoc-gen-go-drpc
	@rm -rf $(FRESH) && mkdir -p $(BIN) $(FRESH)
	$(GO) build -o $(BIN)/ ./cmd/protoc-gen-raylink
	@for t in $(TEMPLATES); do echo "buf generate --template $$t"; \
	  PATH="$(BIN):$(TOOLS):$$PATH" $(TOOLS)/buf generate --template $$t -o $(FRESH); done

.PHONY: generate
generate: fresh ## make the code of all schemas anew
	@(cd $(FRESH) && find . -type d -name gen -prune) | while read -r d; do rm -rf "$$d"; mkdir -p "$$(dirname "$$d")"; cp -R "$(FRESH)/$$d" "$$d"; done

.PHONY: check-generate
check-generate: fresh ## fail where generated code is not what its schemas make today
	@stale=0; for d in $$(cd $(FRESH) && find . -type d -name gen -prune); do diff -rq "$$d" "$(FRESH)/$$d" || stale=1; done; \
	if [ $$stale = 1 ]; then echo "Generated code is stale: run 'make generate' and commit what changes."; exit 1; fi

.PHONY: cross
cross: ## build and vet for the platforms that this one is not
	@for p in darwin/arm64 linux/arm64; do echo "build and vet for $$p"; \
	  export CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/}; $(GO) build ./... && $(GO) vet ./... || exit 1; done

$(SUITE): internal/conformance/go.mod internal/conformance/run $(wildcard internal/conformance/hooks/*)
	GO="$(GO)" internal/conformance/run suite $@

# Its servers and clients under test have the race detector. WAYS="host-path tunnel" tests only
# those.
.PHONY: test-conformance
test-conformance: $(SUITE) ## the official Connect suite against a host, the gateway and handles: all cases must pass
	@mkdir -p $(CONFORMANCE)
	@cp internal/conformance/go.mod $(CONFORMANCE)/suite.mod && cp internal/conformance/go.sum $(CONFORMANCE)/suite.sum
	@$(GO) mod edit -replace connectrpc.com/conformance=$(SUITE) -replace github.com/raylink/raylink=$(CURDIR) $(CONFORMANCE)/suite.mod
	$(GO) -C internal/conformance build -mod=mod -modfile=$(CONFORMANCE)/suite.mod -o $(CONFORMANCE)/ connectrpc.com/conformance/cmd/connectconformance
	$(GO) -C internal/conformance build $(RACE) -o $(CONFORMANCE)/ ./conformance-server ./conformance-client
	internal/conformance/run test $(CONFORMANCE)

.PHONY: test-clients
test-clients: $(TOOLS)/buf ## drive a node from curl, Python, TypeScript and grpc-go
	@if [ -z "$(CLIENTS)" ]; then echo "clients/test is not there"; exit 1; fi
	$(CLIENTS)

.PHONY: browser
browser: ## install Chromium for the test of pages, where there is none (Debian's, as root)
	@if command -v chromium chromium-browser google-chrome >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	else echo "There is no Chromium, and it can't be installed here: pages are not tested."; fi

.PHONY: namespaces
namespaces: ## install iproute2 for the tests on several machines, where there is none (Debian's, as root)
	@if command -v ip >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends iproute2 >/dev/null; \
	else echo "There is no iproute2, and it can't be installed here: nothing is tested on several machines."; fi

.PHONY: slurm
slurm: ## install Slurm and munge for the tests of its engine, where there is none (Debian's, as root)
	@if PATH="$$PATH:/usr/sbin"; command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null; \
	else echo "There is no Slurm, and it can't be installed here: its engine is not tested."; fi

# A Python environment of its own, which the tests of the engine, demo-ray and the benchmark use.
# The pins are complete, and most of what Ray brings along is never imported: so pip resolves and
# compiles nothing.
RAY_PYTHON := $(CURDIR)/.cache/ray/venv/bin/python
RAY_PINNED := clients/python/ray-requirements.txt

.PHONY: ray
ray: ## install Ray into .cache/ray, for runs on a Ray cluster (0.4 GB; Python 3.11 or later with venv, else Debian's as root)
	@if cmp -s $(RAY_PINNED) .cache/ray/installed && $(RAY_PYTHON) -c 'import ray'; then exit 0; fi; \
	find() { for p in python3.11 python3; do "$$p" -c 'import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && return; done; }; \
	if [ -z "$$(find)" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv >/dev/null; fi; \
	python=$$(find || true); \
	if [ -z "$$python" ]; then echo "There is no Python 3.11 with venv, and it can't be installed here: runs on Ray are not tested."; exit 0; fi; \
	rm -rf .cache/ray && mkdir -p .cache/ray && "$$python" -m venv .cache/ray/venv && \
	$(RAY_PYTHON) -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r $(RAY_PINNED) && cp $(RAY_PINNED) .cache/ray/installed

.PHONY: redis
redis: ## install redis-server for the rows of the storage in the benchmark, where there is none (Debian's, as root)
	@if command -v redis-server >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server >/dev/null; \
	else echo "There is no redis-server, and it can't be installed here: the benchmark reports it as missing."; fi

# Half of the linker's time goes into symbols for debuggers, and there are hundreds of binaries.
# Without paths in them, what another clone has compiled is found in the cache.
#
# Many tests wait, for a process to start or a time to pass. What only computes, and has no
# deadlines, runs beside them at the lowest priority: it takes what they leave.
.PHONY: ci
ci: export GOFLAGS := -ldflags=-w -trimpath $(GOFLAGS)
ci: ## everything that has to be green before anything lands
	@$(MAKE) --no-print-directory check-generate
	@$(MAKE) --no-print-directory lint-text
	@$(MAKE) --no-print-directory test-economy
	@$(MAKE) --no-print-directory -j2 -Otarget ci-tests ci-static

.PHONY: ci-tests ci-static
ci-tests:
	@$(MAKE) --no-print-directory test-invariants
	@$(MAKE) --no-print-directory test-hostile
	@$(MAKE) --no-print-directory test-soak
	@$(MAKE) --no-print-directory test SKIP=Kills # test-soak has run these, with more kills
	@$(MAKE) --no-print-directory -j2 -Otarget $(if $(CLIENTS),test-clients) test-conformance # both wait most of the time
	@$(MAKE) --no-print-directory test-mutants
ci-static:
	@nice -n 19 $(MAKE) --no-print-directory lint-go
	@nice -n 19 $(MAKE) --no-print-directory cross

.PHONY: demo
demo: build ## train CartPole with the whole pipeline; SEEDS=20 prints a table, PRIORITIZED=1 samples a table of the replay, ABLATE=pull and ABLATE=replay must fail
	$(BIN)/cartpole $(if $(SEEDS),--seeds=$(SEEDS)) $(if $(ABLATE),--ablate=$(ABLATE)) $(if $(PRIORITIZED),--prioritized)

# The programs run as they are; the test's binary makes the machines, and shows what happens.
.PHONY: demo-machines
demo-machines: build namespaces ## train CartPole over three machines of network namespaces (Linux, as root): learner and replay, workers, and Brain have one each
	$(GO) test -c -o $(BIN)/demo-machines ./examples/cartpole/internal/machines
	RAYLINK_TEST_NAMESPACES=required $(BIN)/demo-machines -test.v -test.timeout=0 -programs=$(BIN) -- --seed=$(or $(SEED),1) $(if $(PRIORITIZED),--prioritized)

.PHONY: demo-local
demo-local: build ## train CartPole over three machines that are processes of this one: learner and replay, and workers on two
	$(BIN)/raylink run --group trainer:label.role=trainer --group worker:machines=2,label.role=worker -- \
	  $(BIN)/cartpole --seed=$(or $(SEED),1) $(if $(PRIORITIZED),--prioritized)

.PHONY: demo-slurm
demo-slurm: build slurm ## train CartPole over three nodes of a Slurm cluster, which are this machine under other names
	$(GO) test -c -o $(BIN)/demo-slurm ./examples/cartpole/internal/clusters
	RAYLINK_TEST_SLURM=required $(BIN)/demo-slurm -test.v -test.timeout=0 -test.run=Slurm -programs=$(BIN) -- --seed=$(or $(SEED),1)

.PHONY: demo-ray
demo-ray: build ray ## train CartPole over three nodes of a Ray cluster, which it starts on this machine: learner and replay, and workers on two
	examples/cartpole/demo-ray --seed=$(or $(SEED),1) $(if $(PRIORITIZED),--prioritized)

.PHONY: bench
bench: ## calls side by side with the peers: make bench BENCH=rpc/unary/16B ROUNDS=1 DURATION=300ms (see bench/README.md)
	@mkdir -p $(BIN)
	$(GO) -C bench build -o $(BIN)/bench .
	$(BIN)/bench $(if $(BENCH),-bench='$(BENCH)') $(if $(SYSTEMS),-systems=$(SYSTEMS)) $(if $(ROUNDS),-rounds=$(ROUNDS)) $(if $(DURATION),-duration=$(DURATION)) \
	  $(if $(CPUPROFILE),-cpuprofile=$(CPUPROFILE)) $(if $(MEMPROFILE),-memprofile=$(MEMPROFILE)) $(if $(PLOT),-plot=$(PLOT)) $(if $(SUMMARY),-summary=$(SUMMARY))

.PHONY: bench-reverb
bench-reverb: ## the replay beside dm-reverb and cpprb, which it installs (1.3 GB; Python 3.11): ROUNDS, DURATION and SUMMARY as for bench
	@mkdir -p $(BIN)
	$(GO) -C bench build -o $(BIN)/bench .
	$(BIN)/bench -buffers $(if $(ROUNDS),-rounds=$(ROUNDS)) $(if $(DURATION),-duration=$(DURATION)) $(if $(SUMMARY),-summary=$(SUMMARY))

.PHONY: microbench
microbench: ## run the packages' own Go benchmarks
	$(GO) test -run='^$$' -bench=. -benchmem ./...

.PHONY: tools
tools: $(addprefix $(TOOLS)/,buf protoc-gen-go protoc-gen-connect-go protoc-gen-go-grpc protoc-gen-go-drpc golangci-lint) ## build the pinned tools

.PHONY: plugins
plugins: $(TOOLS)/buf $(TOOLS)/protoc-gen-go ## put into bin/ what makes code of schemas: protoc-gen-raylink, protoc-gen-go and buf
	@mkdir -p $(BIN)
	$(GO) build -o $(BIN)/ ./cmd/protoc-gen-raylink
	@install $^ $(BIN)/

.PHONY: clean
clean: ## remove what was built, tools included
	rm -rf $(BIN) .cache

$(TOOLS)/buf: PACKAGE = github.com/bufbuild/buf/cmd/buf
$(TOOLS)/protoc-gen-go: PACKAGE = google.golang.org/protobuf/cmd/protoc-gen-go
$(TOOLS)/protoc-gen-connect-go: PACKAGE = connectrpc.com/connect/v2/cmd/protoc-gen-connect-go
$(TOOLS)/protoc-gen-go-grpc: PACKAGE = google.golang.org/grpc/cmd/protoc-gen-go-grpc
$(TOOLS)/protoc-gen-go-drpc: PACKAGE = storj.io/drpc/cmd/protoc-gen-go-drpc
$(TOOLS)/golangci-lint: PACKAGE = github.com/golangci/golangci-lint/v2/cmd/golangci-lint
$(TOOLS)/%: tools/go.mod
	@mkdir -p $(@D)
	@echo "building $* (once; a minute or two)"
	@GOOS= GOARCH= $(GO) -C tools build -o $@ $(PACKAGE) && touch $@
