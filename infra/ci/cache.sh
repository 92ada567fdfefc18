#!/usr/bin/env bash
# Lets this checkout reuse what is expensive to make: compiled dependencies and the tools of the tests. Both lie in a
# cache outside the checkout, to which `target` and `.tools` become links. The key of the compiled dependencies is the
# toolchain, the lock file and the profiles; the crates of the workspace are always compiled again.
# Prints one line that says whether the cache was cold.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache="${XDG_CACHE_HOME:-$HOME/.cache}/continuum"
mkdir -p "$cache"
cache="$(cd "$cache" && pwd -P)"
key="$({ rustc -vV; cat Cargo.lock; sed -n '/^\[profile/,/^\[workspace.lints/p' Cargo.toml; printf '%s' "${RUSTFLAGS:-}"; } | sha256sum | cut -c1-16)"
target="$cache/target-$key"
link() {
  if [ -e "$2" ] && [ ! -L "$2" ]; then
    echo "$2 exists in this checkout and is used instead of the cache"
    return
  fi
  mkdir -p "$1"
  ln -sfn "$1" "$2"
}
if [ -d "$target/debug/deps" ]; then state=warm; else state=cold; fi
link "$target" target
link "$cache/tools" .tools
touch "$target"
# An older key is of no use once the lock file or the toolchain has moved on: the newest two are kept.
find "$cache" -maxdepth 1 -name 'target-*' -printf '%T@ %p\n' | sort -rn | tail -n +3 | cut -d' ' -f2- | xargs -r rm -rf
if [ -L target ] && [ "$state" = warm ]; then cargo clean --quiet --workspace --locked; fi
echo "compiled dependencies: $state ($target)"
