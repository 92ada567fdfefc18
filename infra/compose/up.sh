#!/usr/bin/env bash
# Starts the mesh of compose.yaml, after it has looked whether that can go well: the engine answers, the images are there, the
# ports are free, the clock is not in the past, and no other checkout's mesh has the project's name. What cannot go well is
# named on standard error, with what to do.
#   infra/compose/up.sh [--check] [options and services of `compose up`]
# With --check nothing is started. CONTAINER_ENGINE names the engine, COMPOSE the command (`docker compose`, `podman-compose`),
# COMPOSE_PROJECT_NAME the project, CONTINUUM_PORT_<number> another port of this machine for one that compose.yaml publishes.
# Exit code 69: it cannot be started here. 64: something that was given is wrong. Else that of compose.
set -euo pipefail
cd "$(dirname "$0")/../.."
here="$(pwd -P)"
. infra/engine/find.sh
only_check=""
if [ "${1:-}" = --check ]; then only_check=1 && shift; fi
refuse() {
  printf '%s\n' "$1" >&2
  exit "${2:-69}"
}

engine="$(find_engine docker podman)"
case "$(basename "$engine")" in
  docker) candidates=("docker compose" docker-compose) ;;
  *) candidates=(podman-compose "$engine compose") ;;
esac
compose=()
for candidate in "${COMPOSE:-${candidates[0]}}" "${candidates[@]}"; do
  read -r -a compose <<<"$candidate"
  if [[ "${compose[0]}" == *podman-compose ]]; then compose+=(--podman-path "$(command -v "$engine")"); fi
  if command -v "${compose[0]}" >/dev/null && timeout 20 "${compose[@]}" version >/dev/null 2>&1; then break; fi
  compose=()
done
if [ ${#compose[@]} -eq 0 ]; then
  refuse "$engine has no compose command: install the plugin docker-compose-v2, or podman-compose; or name one with COMPOSE"
fi
ask() { timeout --kill-after=5 60 "$engine" "$@" 2>/dev/null; }

# Certificates and tokens fail without a word of the clock where it is before they were made.
released="$(stat -c %Y compose.yaml)" now="$(date +%s)"
if [ "$now" -lt $((released - 86400)) ]; then
  refuse "the clock of this machine is at $(date -u +%FT%TZ), before compose.yaml was written ($(date -u -d "@$released" +%FT%TZ)): \
set it, for example with chrony; in the past, certificates and tokens are not valid yet"
fi

# The name that compose takes by itself.
project="${COMPOSE_PROJECT_NAME:-$(basename "$here" | tr '[:upper:]' '[:lower:]' | tr -cd 'a-z0-9_-')}"
running="$(ask ps --all --quiet --filter "label=com.docker.compose.project=$project" || true)"
if [ -n "$running" ]; then
  # shellcheck disable=SC2086 # A list of ids.
  others="$(ask inspect --format '{{index .Config.Labels "com.docker.compose.project.working_dir"}}' $running | sort -u |
    grep -vxF -e "$here" -e "<no value>" -e "" || true)"
  if [ -n "$others" ]; then
    refuse "the project $project is already the mesh of $(echo $others): starting this one would replace its containers and \
take its data; give this one another name and other ports: COMPOSE_PROJECT_NAME=$project-2 CONTINUUM_PORT_4222=14222 …" 64
  fi
fi

# Images of the services that are given, or of all.
images() {
  awk -v given=" $* " '
    /^  [a-z-]+:$/ { service = $1; sub(":", "", service) }
    /^    image: \$\{CONTINUUM_IMAGES/ && (!any || index(given, " " service " ")) { sub(".*continuum}/", ""); sub(":.*", ""); print }
    BEGIN { any = given ~ / [a-z]/ }' compose.yaml
}
# Without a registry, images come from `make images` alone.
version="$(sed -n 's|^ *image: ${CONTINUUM_IMAGES:-continuum}/continuum:${CONTINUUM_VERSION:-\(.*\)}$|\1|p' compose.yaml | head -n 1)"
version="${CONTINUUM_VERSION:-$version}"
if [ -z "${CONTINUUM_IMAGES:-}" ]; then
  wanted="$(images "$@" | sort -u | sed "s|.*|continuum/&:$version|")" missing=""
  # Asked for all at once; which is missing, only if one is.
  # shellcheck disable=SC2086 # A list of names.
  if [ -n "$wanted" ] && ! ask image inspect $wanted >/dev/null; then
    for image in $wanted; do
      if ! ask image inspect "$image" >/dev/null; then missing="$missing $image"; fi
    done
  fi
  if [ -n "$missing" ]; then
    refuse "$engine has no image${missing}: make it with \`CONTAINER_ENGINE=$engine CONTINUUM_VERSION=$version make images\`, name a \
version that is there with CONTINUUM_VERSION, or a registry with CONTINUUM_IMAGES"
  fi
fi

# Ports of a project that runs are its own.
if [ -z "$running" ]; then
  for number in $(grep -o 'CONTINUUM_PORT_[0-9]*' compose.yaml | sort -u | sed 's/.*_//'); do
    variable="CONTINUUM_PORT_$number"
    port="${!variable:-$number}"
    case "$port" in
      *[!0-9]* | ??????*) refuse "$variable is \"$port\": give the number of a port, 1 to 65535" 64 ;;
    esac
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      refuse "port $port of 127.0.0.1 is taken by another program (\`ss -ltnp 'sport = :$port'\` shows which): stop it, or publish \
$number elsewhere: $variable=1$number"
    fi
  done
fi

if [ -n "$only_check" ]; then
  echo "project $project, version $version, with $engine: nothing stands in the way"
  exit 0
fi
# Podman 4 cannot start what depends on something that depends on something that has ended: all at once, then.
if [[ "${compose[0]}" == *podman-compose ]]; then set -- --no-deps "$@"; fi
exec "${compose[@]}" --project-name "$project" up --detach "$@"
