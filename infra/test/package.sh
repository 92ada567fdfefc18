#!/usr/bin/env bash
# Makes the packages twice, and lives with them on a Debian of their own, booted by systemd, without a network and without a
# compiler: installs by the commands of the README, sees the demo's story, runs the service, upgrades, removes, purges.
#   infra/test/package.sh [debug|release]
# What is not on this machine is named in a line that begins with NOT RUN; then the exit code is 0.
set -euo pipefail
cd "$(dirname "$0")/../.."
profile="${1:-debug}"
work="$(mktemp -d)"
chmod 755 "$work"
machine=""
finish() {
  if [ -n "$machine" ]; then kill -9 "$machine" 2>/dev/null || true; fi
  wait 2>/dev/null || true
  rm -rf --one-file-system "$work"
}
trap finish EXIT
fail() { echo "package: $*" >&2 && exit 1; }
not_run() { echo "NOT RUN: packages: $*" && exit 0; }
if ! command -v dpkg-deb >/dev/null || ! command -v apt-get >/dev/null; then not_run "there is no dpkg-deb or apt-get here"; fi

echo "-- the same programs give the same packages"
infra/package/build.sh --profile "$profile" --out "$work/one"
(umask 077 && TZ=Asia/Tokyo LC_ALL=C.UTF-8 TMPDIR="$work" infra/package/build.sh --profile "$profile" --out "$work/two" >/dev/null)
cmp "$work/one/SHA256SUMS" "$work/two/SHA256SUMS" || fail "a second run made other packages"
(cd "$work/two" && sha256sum --quiet --check SHA256SUMS)
rm -rf "$work/two"

echo "-- what is in the .deb"
deb="$(ls "$work/one"/*.deb)" tarball="$(ls "$work/one"/*.tar.gz)"
dpkg-deb --contents "$deb" >"$work/contents"
if grep -v ' root/root ' "$work/contents"; then fail "these files are not root's"; fi
if grep -vE '^(d|-)rwxr-xr-x |^-rw-r--r-- |^lrwxrwxrwx ' "$work/contents"; then fail "the modes of these files are not the usual ones"; fi
for part in bin/continuum lib/continuum/nats-server lib/systemd/system/continuum.service share/man/man1/continuum-up.1.gz \
  share/bash-completion/completions/continuum share/doc/continuum/copyright share/doc/continuum/LICENCES.gz \
  share/continuum/examples/spinner.workload.yaml; do
  grep -q " ./usr/$part\( -> .*\)\?\$" "$work/contents" || fail "usr/$part is missing"
done
dpkg-deb -x "$deb" "$work/unpacked"
for program in continuum continuum-demo spinner; do
  if readelf -S "$work/unpacked/usr/lib/continuum/$program" | grep -qE '\.symtab|\.debug_info'; then fail "$program is not stripped"; fi
done
bash -n "$work/unpacked/usr/share/bash-completion/completions/continuum"
gzip -dc "$work/unpacked/usr/share/man/man1/continuum-up.1.gz" | grep -q '^\.TH continuum-up 1' || fail "continuum-up.1 has no title"
python3 - "$work/one" <<'PYTHON' || fail "the list of contents is not what it should be"
import glob, json, sys
sbom = json.load(open(glob.glob(sys.argv[1] + "/*.cdx.json")[0]))
names = {component["name"] for component in sbom["components"]}
assert {"tokio", "clap", "nats-server", "github.com/nats-io/nkeys"} <= names, sorted(names)
PYTHON
rm -rf "$work/unpacked"

tools="$(mkdir -p .tools/package && cd .tools/package && pwd -P)"
packages=adduser,ca-certificates,procps,systemd,systemd-sysv,dbus,util-linux
if [ ! -f "$tools/base.tar" ] || [ "$(cat "$tools/.packages" 2>/dev/null)" != "$packages" ]; then
  echo "-- a Debian"
  rm -rf "$tools/mmdebstrap" "$tools/new.tar" && mkdir "$tools/mmdebstrap"
  fetch() { (cd "$tools/mmdebstrap" && apt-get download -qq mmdebstrap) 2>/dev/null; }
  fetch || { apt-get update -qq && fetch; } || not_run "mmdebstrap could not be fetched"
  dpkg-deb -x "$tools"/mmdebstrap/*.deb "$tools/mmdebstrap"
  "$tools/mmdebstrap/usr/bin/mmdebstrap" --quiet --mode=root --variant=apt --include="$packages" bookworm "$tools/new.tar" \
    >"$work/log" 2>&1 || not_run "a Debian could not be made: $(tail -n 1 "$work/log")"
  mv "$tools/new.tar" "$tools/base.tar"
  echo "$packages" >"$tools/.packages"
fi
root="$work/root"
mkdir "$root"
tar -xpf "$tools/base.tar" --numeric-owner -C "$root"

# It boots in namespaces of its own; its network is the loopback device.
cat >"$work/boot" <<'BOOT'
set -eu
root="$1"
mount --make-rprivate /
mount --bind "$root" "$root"
ip link set lo up
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do touch "$root/dev/$device" && mount --bind "/dev/$device" "$root/dev/$device"; done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance devpts "$root/dev/pts" && ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs tmpfs "$root/dev/shm"
# As on this machine: one hierarchy, or those of version 1 beside it.
if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
  mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
  mkdir "$root/sys/fs/cgroup/systemd" "$root/sys/fs/cgroup/unified"
  mount -t cgroup -o name=systemd,none systemd "$root/sys/fs/cgroup/systemd"
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
fi
cd "$root" && mkdir old && pivot_root . old
umount -l /old && rmdir /old
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=multi-user.target
BOOT
unshare --mount --pid --net --uts --ipc --cgroup --fork --kill-child bash "$work/boot" "$root" </dev/null >"$work/log" 2>&1 &
parent=$!
inside() { nsenter --target "$machine" --mount --pid --net --uts --ipc --cgroup --root --wd env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"; }
for _ in $(seq 100); do
  machine="$(ps --ppid "$parent" -o pid= | tr -d ' ' || true)"
  if [ -n "$machine" ] && inside test -S /run/systemd/private 2>/dev/null; then break; fi
  kill -0 "$parent" 2>/dev/null || not_run "no Debian boots here: $(tail -n 1 "$work/log")"
  sleep 0.2
done
inside timeout 60 systemctl is-system-running --wait >/dev/null || not_run "systemd does not get up here: $(inside systemctl --failed --no-legend | head -n 3)"

# What a person types, as the README has it.
section="$(awk '/^### From a package$/ { run = 1; next } /^##/ { run = 0 } run' README.md)"
typed() { sed -n "s/^sudo \(apt $1 .*\|systemctl $1 .*\)/\1/p; s/^\(continuum $1\)\$/\1/p" <<<"$section" | sed 's/ *#.*//; s/^apt /apt-get -qq -y /' | head -n 1; }
for step in install demo enable remove; do
  [ -n "$(typed "$step")" ] || fail "the README's section \"From a package\" has no command for: $step"
done
install -m 644 "$deb" "$tarball" "$root/root/"
{
  printf 'install=%q demo=%q enable=%q remove=%q tarball=%q\n' "$(typed install)" "$(typed demo)" "$(typed enable)" \
    "$(typed remove)" "$(basename "$tarball")"
  cat infra/test/package-inside.sh
} >"$root/root/inside"
inside bash /root/inside
