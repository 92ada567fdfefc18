#!/usr/bin/env bash
# Installs what the test suite uses besides Rust and nats-server, into .tools/test. Without it, the suites that need
# it skip by name.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools="$PWD/.tools"
mkdir -p "$tools"
if ! command -v python3 >/dev/null; then
  echo "no python3: the outside-client and manifest suites will be skipped" >&2
  exit 0
fi
stamp="$tools/test/.installed"
if [ ! -f "$stamp" ] || ! cmp -s infra/test/requirements.txt "$stamp"; then
  python3 -m venv "$tools/test"
  "$tools/test/bin/pip" install --quiet --disable-pip-version-check -r infra/test/requirements.txt
  cp infra/test/requirements.txt "$stamp"
fi
echo "Python test tools in $tools/test"
if command -v go >/dev/null; then
  (cd infra/test/ledger-check && GOFLAGS=-mod=readonly go build -o "$tools/test/ledger-check" .)
  echo "Go checker of ledgers in $tools/test"
else
  echo "no go: ledgers are checked by pymerkle alone" >&2
fi
