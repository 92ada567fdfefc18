#!/bin/sh
# Writes a kustomize component that takes the project's images from a registry, by digest where one is given, and names the
# provisioning job after them: a job cannot be changed, so other images need another one.
#   mkdir -p k8s/overlays/example/images
#   k8s/pin.sh registry.example.org/continuum < digests.txt > k8s/overlays/example/images/kustomization.yaml
# Standard input has one line for each pinned image, `validator sha256:…`; it may be empty. Images of others (nats, zenoh) are
# pinned under their own names, `nats sha256:…`, and keep their registry.
set -eu
fail() {
    echo "pin.sh: $1" >&2
    exit 64
}
[ $# = 1 ] || fail "give the registry with the prefix of the images, for example registry.example.org/continuum"
prefix=${1%/}
echo "$prefix" | grep -Eq '^[a-z0-9][a-z0-9._/:-]*$' || fail "\"$1\" is not the prefix of an image's name"
base=$(dirname "$0")/base
images=$(sed -n 's/^ *image: \([^:]*\):.*/\1/p' "$base"/*.yaml | sort -u)
job=$(sed -n 's/^  name: \(provision-[0-9a-f]*\)$/\1/p' "$base/provision.yaml")
pins=$(grep -v '^ *$' || true)
echo "$pins" | while read -r name digest rest; do
    [ -n "$name" ] || continue
    echo "$images" | grep -Eqx "(continuum/|eclipse/)?$name" || fail "no manifest has an image \"$name\""
    echo "$digest" | grep -Eqx 'sha256:[0-9a-f]{64}' || fail "\"$digest\" of $name is not a digest: write sha256: and 64 digits"
    [ -z "$rest" ] || fail "more than a name and a digest: \"$name $digest $rest\""
done
echo "apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
images:"
for image in $images; do
    name=${image##*/}
    digest=$(echo "$pins" | awk -v name="$name" '$1 == name {print $2}')
    case $image in
    continuum/*) new=$prefix/$name ;;
    *) new=$image ;;
    esac
    if [ "$new" != "$image" ] || [ -n "$digest" ]; then
        echo "  - name: $image"
        echo "    newName: $new"
        [ -z "$digest" ] || echo "    digest: $digest"
    fi
done
suffix=$(printf '%s\n%s\n%s\n' "$job" "$prefix" "$(echo "$pins" | sort)" | sha256sum | cut -c -10)
echo "patches:
  - target: {kind: Job, name: $job}
    options: {allowNameChange: true}
    patch: |-
      - {op: replace, path: /metadata/name, value: provision-$suffix}"
