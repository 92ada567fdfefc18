#!/usr/bin/env bash
# Runs every ```sh block of the documents, in order, against a mesh of its own. Blocks fenced otherwise are not run.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin="${CARGO_TARGET_DIR:-$PWD/target}/debug"
export PATH="$bin:$PATH"
CONTINUUM_DATA_DIR="$(mktemp -d)"
export CONTINUUM_DATA_DIR
continuum up >"$CONTINUUM_DATA_DIR/up.log" 2>&1 &
mesh=$!
finish() {
  continuum down >/dev/null 2>&1 || true
  wait "$mesh" 2>/dev/null || true
  rm -rf "$CONTINUUM_DATA_DIR"
}
trap finish EXIT
for _ in $(seq 600); do
  if grep -q '^continuum is up' "$CONTINUUM_DATA_DIR/up.log"; then break; fi
  if ! kill -0 "$mesh" 2>/dev/null; then break; fi
  sleep 0.1
done
grep -q '^continuum is up' "$CONTINUUM_DATA_DIR/up.log" || { cat "$CONTINUUM_DATA_DIR/up.log" >&2; exit 1; }

passed=0
for document in README.md ARCHITECTURE.md docs/*.md docs/*/*.md; do
  commands="$(awk '/^```sh$/ { run = 1; next } /^```/ { run = 0 } run' "$document")"
  while IFS= read -r command; do
    [ -n "$command" ] || continue
    since="$SECONDS"
    if ! output="$(bash -euo pipefail -c "$command" 2>&1)"; then
      printf '%s: failed: %s\n%s\n' "$document" "$command" "$output" >&2
      exit 1
    fi
    passed=$((passed + 1))
    printf '%s: %s (%ss)\n' "$document" "$command" "$((SECONDS - since))"
  done <<<"$commands"
done
echo "$passed passed, 0 failed"
