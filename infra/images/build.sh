#!/usr/bin/env bash
# Makes an image of every program that `compose.yaml` names, from binaries that are compiled already.
#   infra/images/build.sh [--profile debug|release] [--engine docker|podman|buildah] [--only NAME,NAME] [--stand-ins]
# Which engine: `--engine`, else $CONTAINER_ENGINE, else the first of docker, podman, buildah and .tools/engine/podman that
# answers. The base is $BASE_IMAGE; else the usual one of Google's distroless, if its registry answers; else one that
# infra/images/base.sh makes out of Debian's packages. $CONTINUUM_IMAGES and $CONTINUUM_VERSION name the images as in
# compose.yaml. --only makes the named images alone. --stand-ins makes images under the names of nats and eclipse/zenoh too, for
# machines without a registry. An engine that does not answer within $CONTAINER_ENGINE_WAIT_S (20), or does not make an image
# within $CONTAINER_ENGINE_BUILD_S (600), is given up.
set -euo pipefail
cd "$(dirname "$0")/../.."
. infra/engine/find.sh
profile=release stand_ins="" only=""
while [ $# -gt 0 ]; do
  case "$1" in
    --profile | --engine | --only) if [ $# -lt 2 ]; then echo "$1 needs a value" >&2 && exit 64; fi ;;
  esac
  case "$1" in
    --profile) profile="$2" && shift 2 ;;
    --engine) CONTAINER_ENGINE="$2" && shift 2 ;;
    --only) only="${2//,/ }" && shift 2 ;;
    --stand-ins) stand_ins=1 && shift ;;
    *) echo "unknown argument $1; use --profile, --engine, --only or --stand-ins" >&2 && exit 64 ;;
  esac
done
engine="$(find_engine docker podman buildah "$PWD/.tools/engine/podman")"
build_s="${CONTAINER_ENGINE_BUILD_S:-600}"
binaries="target/$profile"
prefix="${CONTINUUM_IMAGES:-continuum}"
release="$(sed -n '/^version = "/s/.*"\(.*\)"/\1/p' Cargo.toml | head -n 1)"
version="${CONTINUUM_VERSION:-$release}"
revision="$(git rev-parse HEAD 2>/dev/null || echo unknown)"
names="$(sed -n 's|^ *image: ${CONTINUUM_IMAGES:-continuum}/\([a-z-]*\):.*|\1|p' compose.yaml | sort -u)"
for name in $only; do
  if ! grep -qxF -- "$name" <<<"$names"; then
    echo "unknown image $name; compose.yaml has: $(echo $names)" >&2
    exit 64
  fi
done
names="${only:-$names}"
# The image of the command line holds it without the services, which have images of their own.
program_of() { if [ "$1" = continuum ]; then echo "$binaries/continuumctl"; else echo "$binaries/$1"; fi; }
for name in $names; do
  if [ ! -x "$(program_of "$name")" ]; then
    echo "$(program_of "$name") is missing: compile first (cargo build --locked --bins, with --release for the profile release)" >&2
    exit 66
  fi
done

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
build() { # context, name with tag, then build arguments
  local context="$1" tag="$2"
  shift 2
  local code=0
  timeout --kill-after=10 "$build_s" \
    "$engine" build --quiet --file "$context/Dockerfile" --tag "$tag" "$@" "$context" >"$work/log" 2>&1 || code=$?
  case "$code" in
    0) ;;
    124 | 137)
      echo "$engine did not make $tag within $build_s s: it hangs, or the machine is slow; restart its service, or allow it \
more with CONTAINER_ENGINE_BUILD_S" >&2
      exit 69
      ;;
    *)
      cat "$work/log" >&2
      echo "$engine could not build $tag: the lines above say why" >&2
      exit 70
      ;;
  esac
}

base="${BASE_IMAGE:-}"
usual=gcr.io/distroless/cc-debian12:nonroot
: >"$work/packages"
if [ -z "$base" ] && timeout 30 "$engine" pull --quiet "$usual" >/dev/null 2>&1; then base="$usual"; fi
if [ -z "$base" ]; then
  mkdir "$work/base"
  infra/images/base.sh "$work/base/base.tar"
  cp "$work/base/base.packages" "$work/packages"
  printf 'FROM scratch\nADD base.tar /\n' >"$work/base/Dockerfile"
  base="$prefix/base:$version"
  build "$work/base" "$base"
fi
echo "base: $base"

context() { # folder, program
  mkdir -p "$1/root/usr/local/bin" "$1/owned/data"
  strip --strip-all -o "$1/root/usr/local/bin/service" "$2"
  chmod 755 "$1/root/usr/local/bin/service"
}
for name in $names; do
  here="$work/$name"
  context "$here" "$(program_of "$name")"
  mkdir -p "$here/root/usr/share/sbom"
  infra/images/sbom.py "$name" "$release" "$work/packages" >"$here/root/usr/share/sbom/$name.cdx.json"
  case "$name" in
    # It renders keys and the bus configuration into volumes, and restores into all; they take over who owns these folders.
    continuum)
      mkdir -p "$here/owned/bus"
      sed -n 's|^ *- [a-z-]*:\(/keys/[a-z-]*\)$|\1|p; s|^ *- [a-z-]*:\(/mesh/[a-z/-]*\)$|\1|p' compose.yaml | while read -r folder; do mkdir -p "$here/owned$folder"; done
      ;;
    # It renders charts, where the program for it is there.
    workload-manager)
      helm="$(command -v helm || readlink -f .tools/helm || true)"
      if [ -x "$helm" ]; then cp "$helm" "$here/root/usr/local/bin/helm"; else echo "workload-manager has no helm: it does not render charts"; fi
      ;;
    cluster-agent) if [ -x "$binaries/spinner" ]; then strip --strip-all -o "$here/root/usr/local/bin/spinner" "$binaries/spinner"; fi ;;
  esac
  # So does the volume of the keys that a service makes for itself.
  if grep -q "\"$name-secrets:/secrets\"" compose.yaml; then mkdir -p "$here/owned/secrets"; fi
  cp infra/images/Dockerfile "$here/"
  build "$here" "$prefix/$name:$version" --build-arg "BASE=$base" --build-arg "NAME=$name" --build-arg "VERSION=$version" \
    --build-arg "REVISION=$revision"
  echo "$prefix/$name:$version  $(du -cb "$here/root" | tail -n 1 | awk '{printf "%.1f MB and its base", $1 / 1e6}')"
  rm -rf "$here"
done

if [ -n "$stand_ins" ]; then
  for image in $(sed -n 's|^ *image: \(nats:[0-9.]*\)$|\1|p; s|^ *image: \(eclipse/zenoh:[0-9.]*\)$|\1|p' compose.yaml); do
    case "$image" in
      nats:*) program="$(readlink -f .tools/nats-server)" ;;
      *) program="$binaries/stand-in-zenohd" ;;
    esac
    here="$work/stand-in"
    context "$here" "$program"
    printf 'ARG BASE\nFROM ${BASE}\nCOPY root/ /\nCOPY --chown=10001:10001 owned/ /\nENTRYPOINT ["/usr/local/bin/service"]\n' >"$here/Dockerfile"
    build "$here" "docker.io/$(case "$image" in nats:*) echo "library/$image" ;; *) echo "$image" ;; esac)" --build-arg "BASE=$base"
    echo "$image: a stand-in for the public image"
    rm -rf "$here"
  done
fi
