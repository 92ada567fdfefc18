#!/usr/bin/env bash
# Installs what the test suite uses besides Rust and nats-server, into .tools. Without it, the suites that need it skip
# by name: Python clients of NATS and Zenoh, compilers of protobuf (grpcio-tools, buf), validators of compose.yaml and of
# Kubernetes resources, OpenID Connect providers. Everything comes ready from a registry of packages; what has to be compiled comes from `make servers`.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p .tools
# The folder itself, where it is a link into a cache: programs of Python know their place by its name.
tools="$(cd .tools && pwd -P)"
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

# What has to be compiled: linked if `make servers` has compiled it.
infra/servers/install.sh --cached

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
