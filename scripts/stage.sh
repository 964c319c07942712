# Sourced by scripts that work in stages: `stage NAME COMMAND...` runs one and notes its seconds. The outermost script
# prints them all when it ends, however it ends.

if [ -z "${HEARTH_STAGES:-}" ]; then
  HEARTH_STAGES=$(mktemp)
  export HEARTH_STAGES
  trap 'printf "\n==== Seconds\n"; cat "$HEARTH_STAGES"; printf "%6d  in all\n" "$SECONDS"; rm -f "$HEARTH_STAGES"' EXIT
fi

stage() {
  local name=$1 from=$SECONDS
  shift
  printf '\n==== %s\n' "$name"
  "$@"
  printf '%6d  %s\n' "$((SECONDS - from))" "$name" >> "$HEARTH_STAGES"
}
