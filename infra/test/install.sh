#!/usr/bin/env bash
# Installs what the test suite uses besides Rust and nats-server, into .tools. Without it, the suites that need it skip
# by name: Python clients of NATS and Zenoh, validators of compose.yaml and of Kubernetes resources, kustomize, helm, and
# a registry of images.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p .tools
# The folder itself, where it is a link into a cache: programs of Python know their place by its name.
tools="$(cd .tools && pwd -P)"
kustomize=v5.7.1
mkdir -p "$tools"
if ! command -v python3 >/dev/null; then
  echo "no python3: the outside-client and manifest suites will be skipped" >&2
  exit 0
fi
stamp="$tools/test/.installed"
if [ ! -f "$stamp" ] || ! cmp -s infra/test/requirements.txt "$stamp"; then
  rm -rf "$tools/test"
  python3 -m venv "$tools/test"
  "$tools/test/bin/pip" install --quiet --disable-pip-version-check -r infra/test/requirements.txt
  cp infra/test/requirements.txt "$stamp"
fi
echo "Python test tools in $tools/test"

# Resources are put together in Python where kustomize cannot be had, which knows less of kustomizations.
if [ ! -x "$tools/go/kustomize" ]; then
  if ! command -v go >/dev/null; then
    echo "no go: kustomizations are put together without kustomize" >&2
  elif ! GOBIN="$tools/go" GOFLAGS=-trimpath go install "sigs.k8s.io/kustomize/kustomize/v5@$kustomize" >"$tools/kustomize.log" 2>&1; then
    echo "kustomize $kustomize could not be built (see $tools/kustomize.log): kustomizations are put together without it" >&2
  fi
fi
if [ -x "$tools/go/kustomize" ]; then echo "kustomize $kustomize in $tools/go"; fi
# A registry of images, as the checks of charts find them, and helm, which renders charts.
registry=v3.1.2
if [ ! -x "$tools/go/registry" ] && command -v go >/dev/null; then
  if ! GOBIN="$tools/go" GOFLAGS=-trimpath go install "github.com/distribution/distribution/v3/cmd/registry@$registry" >"$tools/registry.log" 2>&1; then
    echo "the registry $registry could not be built (see $tools/registry.log): looking images up is not tested" >&2
  fi
fi
infra/helm/install.sh || echo "no helm: rendering charts is not tested" >&2
if command -v go >/dev/null; then
  (cd infra/test/ledger-check && GOFLAGS=-mod=readonly go build -o "$tools/test/ledger-check" .)
  echo "Go checker of ledgers in $tools/test"
else
  echo "no go: ledgers are checked by pymerkle alone" >&2
fi

# An OpenID Connect provider of another maker, for the gateway.
if command -v npm >/dev/null; then
  mkdir -p "$tools/oidc"
  if ! cmp -s infra/test/oidc/package.json "$tools/oidc/package.json"; then
    cp infra/test/oidc/package.json "$tools/oidc/"
    (cd "$tools/oidc" && npm install --no-audit --no-fund --no-package-lock --silent)
  fi
  cp infra/test/oidc/provider.mjs "$tools/oidc/"
  echo "OpenID Connect provider in $tools/oidc"
else
  echo "no npm: the gateway is not tested against a provider of another maker" >&2
fi
infra/test/keycloak/install.sh || echo "Keycloak could not be installed: the gateway is not tested against it" >&2
