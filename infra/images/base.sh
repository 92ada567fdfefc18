#!/usr/bin/env bash
# Makes the file system that every image stands on, as a tar archive: what a program linked with glibc needs, certificates
# of public authorities, time zones, a user and empty folders for its data. No shell, no package manager.
#   infra/images/base.sh OUT.tar
# It is taken out of Debian's packages; `make images` uses it where no registry of images is reached.
set -euo pipefail
out="$(realpath -m "$1")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work/debs" "$work/all" "$work/root"
packages="libc6 libgcc-s1 ca-certificates tzdata netbase"
fetch() {
  # shellcheck disable=SC2086 # A list of names.
  (cd "$work/debs" && apt-get download -qq $packages) 2>"$work/error"
}
if ! fetch && ! { apt-get update -qq && fetch; }; then
  echo "the packages of the base image could not be fetched: $(tail -n 1 "$work/error")" >&2
  exit 69
fi
for package in "$work/debs"/*.deb; do dpkg-deb -x "$package" "$work/all"; done

root="$work/root" all="$work/all"
mkdir -p "$root/etc/ssl/certs" "$root/usr/share" "$root/usr/local/bin" "$root/tmp" "$root/data" "$root/run"
chmod 1777 "$root/tmp"
for library in ld-linux-x86-64.so.2 ld-linux-aarch64.so.1 libc.so.6 libm.so.6 libgcc_s.so.1 libdl.so.2 libpthread.so.0 \
  librt.so.1 libresolv.so.2 libnss_dns.so.2 libnss_files.so.2; do
  (cd "$all" && find lib usr/lib lib64 -name "$library" 2>/dev/null || true) | while read -r path; do
    mkdir -p "$root/$(dirname "$path")"
    cp -a "$all/$path" "$root/$path"
    # A link's target comes too.
    if [ -L "$all/$path" ]; then
      target="$(cd "$all/$(dirname "$path")" && realpath -m --relative-to="$all" "$(readlink "$all/$path" | sed "s|^/|$all/|")")"
      mkdir -p "$root/$(dirname "$target")" && cp -a "$all/$target" "$root/$target"
    fi
  done
done
cat "$all"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
cp -a "$all/usr/share/zoneinfo" "$root/usr/share/"
rm -rf "$root/usr/share/zoneinfo/right" "$root/usr/share/zoneinfo/posix"
cp "$all/etc/services" "$all/etc/protocols" "$root/etc/"
printf 'root:x:0:0:root:/:/sbin/nologin\ncontinuum:x:10001:10001:continuum:/data:/sbin/nologin\n' >"$root/etc/passwd"
printf 'root:x:0:\ncontinuum:x:10001:\n' >"$root/etc/group"
printf 'passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n' >"$root/etc/nsswitch.conf"
mkdir -p "$(dirname "$out")"
# The same packages give the same archive.
tar --sort=name --mtime='@0' --owner=0 --group=0 --numeric-owner -C "$root" -cf "$work/base.tar" \
  --exclude=./data .
mkdir -p "$work/data/data"
tar --sort=name --mtime='@0' --owner=10001 --group=10001 --numeric-owner -C "$work/data" -rf "$work/base.tar" ./data
mv "$work/base.tar" "$out"
(cd "$work/debs" && ls ./*.deb) | sed 's|^\./||; s|%3a|:|' >"${out%.tar}.packages"
