#!/usr/bin/env bash
# A container engine for the tests of what is shipped: Podman with runc, conmon, netavark and iptables, taken out of Debian's
# packages into .tools/engine. Nothing is installed on the machine. `.tools/engine/podman` starts it, with storage and
# configuration of its own. Prints its version; where it cannot be had, says so, and the tests that need it do not run.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p .tools
engine="$(cd .tools && pwd -P)/engine"
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
  echo "no apt-get: no container engine, images and compose are not tested" >&2
  exit 0
fi
if [ ! -x "$engine/podman" ] || ! cmp -s infra/engine/install.sh "$engine/.installed"; then
  rm -rf "$engine.new" && mkdir -p "$engine.new/debs"
  packages="podman runc conmon golang-github-containers-common golang-github-containers-image netavark aardvark-dns iptables"
  lacking() {
    # shellcheck disable=SC2086 # A list of names.
    apt-get install --print-uris -qq -y --no-install-recommends $packages |
      sed -n "s|^'[^']*/\([^/_']*\)_[^/']*\.deb'.*|\1|p"
  }
  wanted="$(lacking || { apt-get update -qq && lacking; } || true)"
  wanted="$(printf '%s\n' $wanted $packages | sort -u)"
  # shellcheck disable=SC2086 # A list of names.
  if ! (cd "$engine.new/debs" && apt-get download -qq $wanted) 2>/dev/null; then
    rm -rf "$engine.new"
    echo "Podman could not be fetched: images and compose are not tested" >&2
    exit 0
  fi
  for package in "$engine.new/debs"/*.deb; do dpkg-deb -x "$package" "$engine.new"; done
  rm -rf "$engine.new/debs" "$engine" && mv "$engine.new" "$engine"
  # What Debian's alternatives would link.
  ln -sf iptables-legacy "$engine/usr/sbin/iptables" && ln -sf ip6tables-legacy "$engine/usr/sbin/ip6tables"
  ln -sf xtables-legacy-multi "$engine/usr/sbin/iptables-legacy" && ln -sf xtables-legacy-multi "$engine/usr/sbin/ip6tables-legacy"
  libraries="" xtables=""
  for folder in "$engine"/usr/lib/*-linux-gnu "$engine"/lib/*-linux-gnu; do
    if [ -d "$folder" ]; then libraries="${libraries:+$libraries:}$folder"; fi
  done
  for folder in "$engine"/usr/lib/*-linux-gnu/xtables; do xtables="$folder"; done
  # The limits hold where the hard limit of open files is lower than Podman's default, and cgroups are hybrid.
  cat >"$engine/containers.conf" <<CONF
[containers]
default_ulimits = ["nofile=16384:16384", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
conmon_path = ["$engine/usr/bin/conmon"]
# conmon starts podman again when a container ends, to clean up and to restart it.
conmon_env_vars = ["PATH=$engine/usr/sbin:$engine/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LD_LIBRARY_PATH=$libraries", "HOME=$engine/home", "CONTAINERS_CONF=$engine/containers.conf", "CONTAINERS_REGISTRIES_CONF=$engine/registries.conf", "XTABLES_LIBDIR=$xtables"]
helper_binaries_dir = ["$engine/usr/lib/podman"]
[engine.runtimes]
runc = ["$engine/usr/sbin/runc"]
[network]
network_backend = "netavark"
CONF
  mkdir -p "$engine/home/.config/containers"
  printf '{"default": [{"type": "insecureAcceptAnything"}]}\n' >"$engine/home/.config/containers/policy.json"
  # No registry is asked for a short name.
  printf 'unqualified-search-registries = ["docker.io"]\nshort-name-mode = "permissive"\n' >"$engine/registries.conf"
  cat >"$engine/podman" <<WRAPPER
#!/bin/sh
# Podman with what lies beside it. ENGINE_ROOT is where its images, containers and networks are kept.
root="\${ENGINE_ROOT:-/var/lib/continuum-engine}"
mkdir -p "\$root/networks"
export LD_LIBRARY_PATH="$libraries" XTABLES_LIBDIR="$xtables" PATH="$engine/usr/sbin:$engine/usr/bin:\$PATH" HOME="$engine/home"
export CONTAINERS_CONF="$engine/containers.conf" CONTAINERS_REGISTRIES_CONF="$engine/registries.conf" DISABLE_HC_SYSTEMD=true
exec "$engine/usr/bin/podman" --root "\$root/storage" --runroot "\$root/run" --tmpdir "\$root/tmp" \\
  --network-config-dir "\$root/networks" --storage-driver overlay "\$@"
WRAPPER
  chmod +x "$engine/podman"
  cp infra/engine/install.sh "$engine/.installed"
fi
echo "$("$engine/podman" --version 2>/dev/null || echo "Podman does not start here") in $engine"
