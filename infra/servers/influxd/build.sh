#!/usr/bin/env bash
# Compiles influxd (InfluxDB 2, MIT) into the folder GOBIN, without its user interface. Flux, its language of queries, is
# partly written in Rust: that library is compiled first, from the module of Go that holds it. Needs Go 1.26, Rust and
# a C compiler; 4 to 15 minutes on two cores.
set -euo pipefail
out="$(mkdir -p "${GOBIN:?}" && cd "$GOBIN" && pwd -P)"
cd "$(dirname "$0")"
work="$(mktemp -d)"
# Files of modules are read-only.
trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
export GOFLAGS="-trimpath -mod=readonly"
go mod download github.com/influxdata/flux github.com/influxdata/influxdb/v2
flux="$(go list -m -f '{{.Dir}}' github.com/influxdata/flux)"
version="$(go list -m -f '{{.Version}}' github.com/influxdata/influxdb/v2)"
# The library looks for Flux's own sources two folders above it.
mkdir "$work/flux"
cp -r "$flux/libflux" "$flux/stdlib" "$work/flux/"
chmod -R u+w "$work/flux"
# The whole of Rust that this project uses, not the one that libflux asks for: a machine may have no other.
rust="${RUSTUP_TOOLCHAIN:-$(sed -n 's/^channel = "\(.*\)"/\1/p' ../../../rust-toolchain.toml)}"
(cd "$work/flux/libflux" && env -u RUSTFLAGS -u CARGO_TARGET_DIR RUSTUP_TOOLCHAIN="$rust" \
  CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
  cargo build --locked --release -p flux --no-default-features --features cffi --target-dir "$work/target")
# What the Go side asks pkg-config for.
cat >"$work/flux.pc" <<EOF
Name: flux
Version: $(go list -m -f '{{.Version}}' github.com/influxdata/flux | sed s/^v//)
Description: flux
Libs: $work/target/release/libflux.a -lpthread -ldl -lm -lgcc_s
Cflags: -I$flux/libflux/include
EOF
PKG_CONFIG_PATH="$work" go build -tags 'sqlite_foreign_keys,sqlite_json' -ldflags "-s -w -X main.version=$version" \
  -o "$out/influxd" github.com/influxdata/influxdb/v2/cmd/influxd
