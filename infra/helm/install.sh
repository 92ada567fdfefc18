#!/usr/bin/env bash
# Finds or builds helm 3.14 or newer, with which the workload manager renders charts; leaves a link to it at .tools/helm.
# Without it everything else works, and the step says "not checked".
set -euo pipefail
cd "$(dirname "$0")/../.."
need=3.14.0
build=v3.22.0
mkdir -p .tools
tools="$(cd .tools && pwd -P)"
mkdir -p "$tools"

# In an empty environment, as the workload manager runs it.
version() { env -i HOME=/nonexistent "$1" version --template '{{.Version}}' 2>/dev/null | sed -nE 's/^v?([0-9]+\.[0-9]+\.[0-9]+).*/\1/p' | head -n 1; }
# Of helm 3: helm 4 has other flags and other limits, and was not tried.
new_enough() { [[ "$1" == 3.* ]] && [ "$(printf '%s\n%s\n' "$need" "$1" | sort -V | head -n 1)" = "$need" ]; }
take() { # path, origin
  ln -sfn "$1" "$tools/helm"
  echo "helm $(version "$1") ($2)"
  exit 0
}

if [ -x "$tools/helm" ] && new_enough "$(version "$tools/helm")"; then
  echo "helm $(version "$tools/helm") (.tools)"
  exit 0
fi
for path in "${CONTINUUM_HELM:-}" "$(command -v helm || true)"; do
  [ -n "$path" ] || continue
  found="$(version "$path" || true)"
  if new_enough "$found"; then take "$path" "found"; fi
  echo "skipped $path: version ${found:-unknown} is not helm 3, $need or newer" >&2
done
if command -v go >/dev/null; then
  echo "building helm $build with Go into $tools/go (some minutes, once)"
  # The version is told to the linker, as helm's own Makefile does it: a chart may ask for one.
  stamp="-s -w -X helm.sh/helm/v3/internal/version.version=$build -X helm.sh/helm/v3/internal/version.metadata="
  if GOBIN="$tools/go" GOFLAGS=-trimpath go install -ldflags "$stamp" "helm.sh/helm/v3/cmd/helm@$build" >"$tools/helm.log" 2>&1; then
    if new_enough "$(version "$tools/go/helm")"; then take "$tools/go/helm" "built with Go"; fi
  fi
  echo "the Go build gave no helm (see $tools/helm.log)" >&2
fi
cat >&2 <<TEXT
No helm 3, $need or newer, could be found or built; the step "template" of charts will say "not checked". Do one of these,
then run this command again:
  - put helm 3, $need or newer, on the PATH, or name it in CONTINUUM_HELM;
  - install Go 1.25 or newer (this script then builds helm.sh/helm/v3).
TEXT
exit 69
