#!/usr/bin/env bash
# Installs Keycloak into .tools/keycloak, with the realm of the tests: the gateway's sign-in is tested against it.
# Needs Java 17 or newer and Maven, which fetches it from its central repository.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
mkdir -p "$here/../../../.tools"
tools="$(cd "$here/../../../.tools" && pwd -P)"
version=26.4.2
sha256=2a30e4602d63d4501a4a8263bfa4e14cbd5970b4116c618ea28f339b16190233
home="$tools/keycloak/keycloak-$version"
if ! command -v java >/dev/null || ! command -v mvn >/dev/null; then
  echo "no java or no mvn: the gateway is not tested against Keycloak" >&2
  exit 0
fi
if [ ! -f "$home/.built" ]; then
  rm -rf "$tools/keycloak"
  mkdir -p "$tools/keycloak"
  archive="$tools/keycloak/keycloak-quarkus-dist-$version.zip"
  # The archive alone: what it was built from is in it.
  timeout 600 mvn --batch-mode --quiet org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy \
    "-Dartifact=org.keycloak:keycloak-quarkus-dist:$version:zip" "-DoutputDirectory=$tools/keycloak" >/dev/null
  echo "$sha256  $archive" | sha256sum --check --quiet
  python3 -m zipfile --extract "$archive" "$tools/keycloak"
  rm "$archive"
  chmod +x "$home/bin/kc.sh"
  timeout 600 "$home/bin/kc.sh" build --db=dev-mem --health-enabled=false >/dev/null
  touch "$home/.built"
fi
mkdir -p "$home/data/import"
cp "$here/realm.json" "$home/data/import/realm.json"
ln -sfn "keycloak-$version" "$tools/keycloak/current"
echo "Keycloak $version in $home"
