#!/usr/bin/env bash
# Builds the wheel of the Python client, with what is generated of it.
#   infra/package/wheel.sh [--out FOLDER] [--into FOLDER]
# --out is where the wheel goes (target/packages); --into also unpacks it there, for PYTHONPATH. Its tools are in .tools/wheel.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=target/packages into=""
while [ $# -gt 0 ]; do
  case "$1" in
    --out | --into)
      if [ $# -lt 2 ]; then echo "$1 needs a value" >&2 && exit 64; fi
      if [ "$1" = --out ]; then out="$2"; else into="$2"; fi
      shift 2
      ;;
    *) echo "unknown argument $1; use --out or --into" >&2 && exit 64 ;;
  esac
done
if ! command -v python3 >/dev/null; then echo "python3 is missing: install Python 3.11 or newer with venv and pip" >&2 && exit 69; fi
tools="$(mkdir -p .tools && cd .tools && pwd -P)/wheel"
requirements=clients/python/requirements-build.txt
if ! cmp -s "$requirements" "$tools/.installed" || ! "$tools/bin/pip" --version >/dev/null 2>&1; then
  rm -rf "$tools"
  python3 -m venv "$tools"
  "$tools/bin/pip" install --quiet --disable-pip-version-check -r "$requirements"
  cp "$requirements" "$tools/.installed"
fi
SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}"
export SOURCE_DATE_EPOCH
mkdir -p "$out"
rm -f "$out"/continuum_client-*.whl
pip() { "$tools/bin/pip" --quiet --disable-pip-version-check --no-input "$@"; }
pip wheel --no-build-isolation --no-deps --no-cache-dir --wheel-dir "$out" ./clients/python
wheel="$(ls "$out"/continuum_client-*.whl)"
if [ -n "$into" ]; then
  rm -rf "$into"
  pip install --no-deps --no-index --target "$into" "$wheel"
fi
echo "$wheel"
