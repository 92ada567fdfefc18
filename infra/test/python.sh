#!/usr/bin/env bash
# The Python client: its wheel is built twice, checked for types, and used against a mesh of its own; so are the examples.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin="${CARGO_TARGET_DIR:-$PWD/target}/debug"
export PATH="$bin:$PATH"
work="$(mktemp -d)"
export CONTINUUM_DATA_DIR="$work/mesh"
mesh=""
finish() {
  if [ -n "$mesh" ]; then
    continuum down >/dev/null 2>&1 || true
    wait "$mesh" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap finish EXIT
infra/package/wheel.sh --out "$work/one" --into "$work/client"
(umask 077 && infra/package/wheel.sh --out "$work/two" >/dev/null)
cmp "$work/one"/*.whl "$work/two"/*.whl
python="$PWD/.tools/wheel/bin/python"
(cd clients/python && MYPYPATH="$work/client" "$python" -m mypy --config-file pyproject.toml --cache-dir "$work/mypy" -p continuum_client)

continuum up --nats-context "" >"$work/up.log" 2>&1 &
mesh=$!
for _ in $(seq 600); do
  if grep -q '^continuum is up' "$work/up.log" || ! kill -0 "$mesh" 2>/dev/null; then break; fi
  sleep 0.1
done
grep -q '^continuum is up' "$work/up.log" || { cat "$work/up.log" >&2; exit 1; }
export PYTHONPATH="$work/client"
"$python" clients/python/tests/test_client.py
continuum workload push examples/spinner.workload.yaml
"$python" examples/publish_intent.py
