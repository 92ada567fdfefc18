#!/usr/bin/env bash
# Runs `cargo test` with these arguments, and says at the end which suites did not run, why, and what to do.
# A suite that did not run although `make setup-test` installs what it needs is a failure.
set -uo pipefail
cd "$(dirname "$0")/../.."
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
# What passing tests print is kept out of sight, and read for the suites that did not run.
"${CARGO:-cargo}" test "$@" -- --show-output 2>&1 | tee "$log" | awk '
  /^successes:$/ { hidden = 1 }
  /^failures:$/ || /^test result:/ || /^error/ { hidden = 0 }
  !hidden { print; fflush() }'
status="${PIPESTATUS[0]}"
skipped="$(grep -ho 'SKIPPED.*' "$log" | sort | uniq -c | sed -E 's/^ *[0-9]+ /  /')"
if [ -z "$skipped" ]; then
  echo "every suite ran"
else
  printf 'suites that did not run:\n%s\n' "$skipped"
  if grep -q 'make setup-test\|install.sh\|nats-server' <<<"$skipped"; then
    echo "some of them need only what \`make setup-test\` installs: run it, and see what it says" >&2
    [ "$status" -ne 0 ] || status=1
  fi
fi
exit "$status"
