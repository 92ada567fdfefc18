#!/usr/bin/env bash
# The checks that need no build: spelling, unused dependencies, licences, duplicate versions, sources of crates.
# Advisories are checked if CONTINUUM_ADVISORY_DB names a folder with a copy of the RustSec advisory database.
set -euo pipefail
cd "$(dirname "$0")/../.."
infra/ci/install.sh
bin="$PWD/.tools/ci/bin"
failed=""
check() { # name, command...
  local name="$1"
  shift
  printf -- '-- %s\n' "$name"
  "$@" || failed="$failed $name"
}

check spelling "$bin/typos" --format brief
check unused-dependencies "$bin/cargo-shear" --offline --locked
check licences-bans-sources "$bin/cargo-deny" --offline --locked check --hide-inclusion-graph bans licenses sources
if [ -n "${CONTINUUM_ADVISORY_DB:-}" ]; then
  # The database is used as it is, under the name that cargo-deny looks for; nothing is downloaded.
  folder="$(mktemp -d)"
  trap 'rm -rf "$folder"' EXIT
  ln -s "$(realpath "$CONTINUUM_ADVISORY_DB")" "$folder/advisory-db-3157b0e258782691"
  sed "s|^\[advisories\]$|[advisories]\ndb-path = \"$folder\"|" deny.toml >"$folder/deny.toml"
  check advisories "$bin/cargo-deny" --offline --locked --config "$folder/deny.toml" check --hide-inclusion-graph advisories
else
  echo "-- advisories: not checked (set CONTINUUM_ADVISORY_DB to a folder with the RustSec database)"
fi

if [ -n "$failed" ]; then
  echo "failed:$failed" >&2
  exit 1
fi
