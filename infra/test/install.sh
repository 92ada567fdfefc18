#!/usr/bin/env bash
# Installs what the test suite uses besides Rust and nats-server, into .tools. Without it, the suites that need it skip
# by name: Python clients of NATS and Zenoh, compilers of protobuf (grpcio-tools, buf), validators of compose.yaml and of
# Kubernetes resources, OpenID Connect providers, rclone, restic and node_exporter, Chromium and Prometheus, databases.
# Everything comes ready from a registry of packages; what has to be compiled comes from `make servers`.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p .tools
# The folder itself, where it is a link into a cache: programs of Python know their place by its name.
tools="$(cd .tools && pwd -P)"
mkdir -p "$tools"
if ! command -v python3 >/dev/null; then
  echo "no python3: the outside-client and manifest suites will be skipped" >&2
  exit 0
fi
stamp="$tools/test/.installed"
if [ ! -f "$stamp" ] || ! cmp -s infra/test/requirements.txt "$stamp"; then
  rm -rf "$tools/test"
  python3 -m venv "$tools/test"
  "$tools/test/bin/pip" install --quiet --disable-pip-version-check -r infra/test/requirements.txt
  cp infra/test/requirements.txt "$stamp"
fi
echo "Python test tools in $tools/test"
# The Python client, which examples use.
infra/package/wheel.sh --out target/python-wheel --into target/python || echo "the Python client could not be built: the examples are not tested" >&2

# Tools of S3 and of measurement that people own, as Debian has them: taken out of their packages, for nothing is to be installed on the machine.
if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
  for tool in rclone restic prometheus-node-exporter; do
    if [ ! -x "$tools/debian/usr/bin/$tool" ]; then
      rm -rf "$tools/debian.new" && mkdir -p "$tools/debian.new" "$tools/debian"
      # Where no list of packages is known yet, root can fetch one.
      if (cd "$tools/debian.new" && { apt-get download -qq "$tool" || { apt-get update -qq && apt-get download -qq "$tool"; }; }) 2>/dev/null; then
        dpkg-deb -x "$tools/debian.new/$tool"_*.deb "$tools/debian"
      else
        echo "$tool could not be fetched: nothing is tested with it" >&2
      fi
      rm -rf "$tools/debian.new"
    fi
  done
  # Shifts the clock of one process.
  if [ ! -e "$tools/debian/usr/share/doc/libfaketime" ]; then
    rm -rf "$tools/debian.new" && mkdir -p "$tools/debian.new" "$tools/debian"
    if (cd "$tools/debian.new" && { apt-get download -qq libfaketime || { apt-get update -qq && apt-get download -qq libfaketime; }; }) 2>/dev/null; then
      dpkg-deb -x "$tools/debian.new"/libfaketime_*.deb "$tools/debian"
    else
      echo "libfaketime could not be fetched: no wrong clock is tested" >&2
    fi
    rm -rf "$tools/debian.new"
  fi
  echo "rclone, restic, node_exporter and libfaketime in $tools/debian"
else
  echo "no apt-get: nothing is tested with rclone, restic and node_exporter" >&2
fi

# A browser for the page in examples/dashboard, and Prometheus for the gateway's metrics, each with the libraries that this
# machine lacks. `chromium` beside them starts the browser with those.
if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
  if [ ! -x "$tools/debian/chromium" ] || [ ! -x "$tools/debian/usr/bin/promtool" ]; then
    rm -rf "$tools/debian.new" && mkdir -p "$tools/debian.new" "$tools/debian"
    lacking() {
      apt-get install --print-uris -qq -y --no-install-recommends chromium prometheus |
        sed -n "s|^'[^']*/\([^/_']*\)_[^/']*\.deb'.*|\1|p" | grep -vE '^(libjs-|fonts-)'
    }
    wanted="$(lacking || { apt-get update -qq && lacking; } || true)"
    wanted="$(printf '%s\n' $wanted chromium chromium-common prometheus | sort -u)"
    # shellcheck disable=SC2086 # A list of names.
    if (cd "$tools/debian.new" && apt-get download -qq $wanted) 2>/dev/null; then
      for package in "$tools/debian.new"/*.deb; do dpkg-deb -x "$package" "$tools/debian"; done
      cat >"$tools/debian/chromium" <<'WRAPPER'
#!/bin/sh
# Starts the browser with the libraries beside it.
here="$(dirname "$(readlink -f "$0")")"
for folder in "$here"/usr/lib/*-linux-gnu; do libraries="$folder:$folder/pulseaudio"; done
LD_LIBRARY_PATH="$libraries" exec "$here/usr/lib/chromium/chromium" "$@"
WRAPPER
      chmod +x "$tools/debian/chromium"
    else
      echo "chromium and prometheus could not be fetched: the dashboard's page and the metrics are not tested with them" >&2
    fi
    rm -rf "$tools/debian.new"
  fi
  if [ -x "$tools/debian/chromium" ]; then echo "Chromium and Prometheus in $tools/debian"; fi
fi

# A container engine for what is shipped.
infra/engine/install.sh

# Databases that views may rest in.
infra/servers/database.sh install

# What has to be compiled: linked if `make servers` has compiled it.
infra/servers/install.sh --cached

# An OpenID Connect provider of another maker, for the gateway.
if command -v npm >/dev/null; then
  mkdir -p "$tools/oidc"
  if ! cmp -s infra/test/oidc/package.json "$tools/oidc/package.json"; then
    cp infra/test/oidc/package.json "$tools/oidc/"
    (cd "$tools/oidc" && npm install --no-audit --no-fund --no-package-lock --silent)
  fi
  cp infra/test/oidc/provider.mjs "$tools/oidc/"
  echo "OpenID Connect provider in $tools/oidc"
else
  echo "no npm: the gateway is not tested against a provider of another maker" >&2
fi

# The page in examples/dashboard, built, and what drives a browser.
if command -v npm >/dev/null; then
  mkdir -p "$tools/dashboard"
  if ! cmp -s infra/test/dashboard/package.json "$tools/dashboard/package.json" ||
    ! cmp -s examples/dashboard/package.json "$tools/dashboard/.installed"; then
    cp infra/test/dashboard/package.json "$tools/dashboard/"
    page="$(sed -n 's|^ *"\(@*[a-z/-]*\)": "\([0-9.]*\)",*$|\1@\2|p' examples/dashboard/package.json)"
    # shellcheck disable=SC2086 # A list of packages.
    (cd "$tools/dashboard" && npm install --no-save --no-audit --no-fund --no-package-lock --silent $page)
    cp examples/dashboard/package.json "$tools/dashboard/.installed"
  fi
  cp infra/test/dashboard/look.mjs "$tools/dashboard/"
  (cd examples/dashboard && NODE_PATH="$tools/dashboard/node_modules" PATH="$tools/dashboard/node_modules/.bin:$PATH" \
    OUT="$tools/dashboard/page" npm run --silent build)
  echo "The dashboard's page in $tools/dashboard"
else
  echo "no npm: the dashboard's page is not tested" >&2
fi
infra/test/keycloak/install.sh || echo "Keycloak could not be installed: the gateway is not tested against it" >&2
