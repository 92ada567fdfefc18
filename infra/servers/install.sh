#!/usr/bin/env bash
# The programs that tests use and that no registry has ready for use: helm, kustomize, a registry of images, the NATS
# command line, a checker of ledgers, and InfluxDB. Each is compiled with Go once per machine, into a cache outside the checkout keyed by its version, and
# `.tools` links to it. With --cached nothing is compiled: what the cache has is linked, what it lacks is named.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p .tools
tools="$(cd .tools && pwd -P)"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/continuum/servers"
mkdir -p "$cache"
cache="$(cd "$cache" && pwd -P)"
cached_only=""
case "${1:-}" in
  --cached) cached_only=1 ;;
  "") ;;
  *)
    echo "unknown argument $1; use --cached, or none" >&2
    exit 64
    ;;
esac
failed=0

# Links .tools/$2 to the program $1 of the version $3; compiles it with the rest of the arguments if it is not cached.
provide() {
  local name="$1" link="$2" version="$3"
  shift 3
  local folder="$cache/$name-$version"
  if [ ! -x "$folder/$name" ]; then
    if [ -n "$cached_only" ]; then
      echo "$name $version is not cached: what needs it is not tested (run \`make servers\`)" >&2
      return
    fi
    if ! command -v go >/dev/null; then
      echo "$name $version cannot be compiled: install Go 1.25 or newer, then run \`make servers\` again" >&2
      failed=1
      return
    fi
    echo "compiling $name $version into $folder"
    mkdir -p "$folder.new"
    if ! (GOBIN="$folder.new" GOFLAGS=-trimpath "$@") >"$folder.log" 2>&1; then
      echo "$name $version could not be compiled: see $folder.log" >&2
      rm -rf "$folder.new"
      failed=1
      return
    fi
    rm -rf "$folder"
    mv "$folder.new" "$folder"
  fi
  mkdir -p "$(dirname "$tools/$link")"
  ln -sfn "$folder/$name" "$tools/$link"
  echo "$name $version in $folder"
}

helm=v3.22.0
# The version is told to the linker, as helm's own Makefile does it: a chart may ask for one.
stamp="-s -w -X helm.sh/helm/v3/internal/version.version=$helm -X helm.sh/helm/v3/internal/version.metadata="
provide helm helm "$helm" go install -ldflags "$stamp" "helm.sh/helm/v3/cmd/helm@$helm"
provide kustomize go/kustomize v5.7.1 go install sigs.k8s.io/kustomize/kustomize/v5@v5.7.1
provide registry go/registry v3.1.2 go install github.com/distribution/distribution/v3/cmd/registry@v3.1.2
provide nats go/nats v0.5.1 go install github.com/nats-io/natscli/nats@v0.5.1
# Ours: its version is its sources.
sources="$(cat infra/test/ledger-check/* | sha256sum | cut -c1-12)"
provide ledger-check test/ledger-check "$sources" env GOFLAGS="-trimpath -mod=readonly" go install -C infra/test/ledger-check .
# InfluxDB 2, without its user interface.
if command -v cargo >/dev/null && command -v pkg-config >/dev/null || [ -n "$cached_only" ]; then
  sources="$(cat infra/servers/influxd/* | sha256sum | cut -c1-12)"
  provide influxd influxd "v2.8.0-$sources" infra/servers/influxd/build.sh
else
  echo "influxd cannot be compiled: install Rust, a C compiler and pkg-config, then run \`make servers\` again" >&2
  failed=1
fi
exit "$failed"
