#!/usr/bin/env bash
# Images out of binaries that are compiled, and `compose.yaml` started with them on a container engine of the tests' own.
#   infra/test/compose.sh [debug|release] [options of compose.py]
# What is not on this machine is named in a line that begins with NOT RUN; then the exit code is 0.
set -euo pipefail
cd "$(dirname "$0")/../.."
. infra/engine/find.sh
profile="${1:-debug}"
if [ $# -gt 0 ]; then shift; fi
engine="$PWD/.tools/engine/podman"
if [ ! -x "$engine" ]; then
  echo "NOT RUN: images and compose: there is no container engine here (infra/engine/install.sh)"
  exit 0
fi
ENGINE_ROOT="$(mktemp -d)"
export ENGINE_ROOT
planted=""
clean() {
  if [ -n "$planted" ]; then rm -f "$planted" && rmdir .continuum/keys .continuum 2>/dev/null || true; fi
  "$engine" rm --all --force >/dev/null 2>&1 || true
  "$engine" rmi --all --force >/dev/null 2>&1 || true
  rm -rf "$ENGINE_ROOT"
}
trap clean EXIT
# An engine that answers may still not be permitted to make networks.
if ! engine_answers "$engine" || ! timeout 60 "$engine" network create probe >/dev/null 2>&1; then
  echo "NOT RUN: images and compose: containers do not run here: ${engine_fault:-$(timeout 20 "$engine" info 2>&1 | tail -n 1)}"
  exit 0
fi
"$engine" network rm probe >/dev/null 2>&1 || true

# A key that lies about while images are made must not get into one.
CONTINUUM_PLANTED_SEED="SU$(tr -dc 'A-Z2-7' </dev/urandom | head -c 56 || true)"
export CONTINUUM_PLANTED_SEED
mkdir -p .continuum/keys
planted=".continuum/keys/planted-$$.nk"
echo "$CONTINUUM_PLANTED_SEED" >"$planted"
version="$(sed -n '/^version = "/s/.*"\(.*\)"/\1/p' Cargo.toml | head -n 1)"
infra/images/build.sh --profile "$profile" --engine "$engine" --stand-ins

# The same programs as images of another version, for upgrades.
next="$version-next"
case " $* " in
  *" --starts "*) ;;
  *)
    names="cluster-agent validator"
    case " $* " in *" --full "*) names="$(sed -n 's|^ *image: ${CONTINUUM_IMAGES:-continuum}/\([a-z-]*\):.*|\1|p' compose.yaml | sort -u)" ;; esac
    for name in $names; do
      printf 'FROM continuum/%s:%s\nLABEL org.opencontainers.image.version=%s\n' "$name" "$version" "$next" |
        timeout 120 "$engine" build --quiet --tag "continuum/$name:$next" - >/dev/null
    done
    set -- --next "$next" "$@"
    ;;
esac
code=0
.tools/test/bin/python3 infra/test/compose.py --engine "$engine" --version "$version" "$@" || code=$?
if [ "$code" -eq 69 ]; then code=0; fi
exit "$code"
