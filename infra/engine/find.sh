# Sourced: finds the container engine, or ends with 69 and a line that says what was tried.
# CONTAINER_ENGINE names the one to use. CONTAINER_ENGINE_WAIT_S is how long an engine may take to answer (20 s).

# Does this engine answer in time? Sets `engine_fault` if not.
engine_answers() {
  local wait_s="${CONTAINER_ENGINE_WAIT_S:-20}" code=0
  engine_fault=""
  if ! command -v "$1" >/dev/null; then
    engine_fault="$1 is not installed"
    return 1
  fi
  timeout --kill-after=5 "$wait_s" "$1" info >/dev/null 2>&1 || code=$?
  case "$code" in
    0) return 0 ;;
    124 | 137) engine_fault="$1 did not answer \`info\` within $wait_s s: it hangs; restart its service" ;;
    *) engine_fault="\`$1 info\` ends with $code; run it to see why, and start its service" ;;
  esac
  return 1
}

# Prints the engine: the one that is named, else the first of these that answers.
find_engine() { # names
  local candidate faults=""
  if [ -n "${CONTAINER_ENGINE:-}" ]; then set -- "$CONTAINER_ENGINE"; fi
  for candidate in "$@"; do
    if engine_answers "$candidate"; then
      echo "$candidate"
      return 0
    fi
    faults="$faults"$'\n'"  $engine_fault"
  done
  echo "no container engine answers: install docker, podman or buildah, or name one with CONTAINER_ENGINE; tried:$faults" >&2
  return 69
}
