# Sourced by the scripts of this folder: they run from the repository's root, from nothing, and leave nothing behind.
# shellcheck shell=bash
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3.11}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
# Artifacts made once serve every script that ci/full runs; a script on its own makes what it needs.
ARTIFACTS=${ALIZE_CI_ARTIFACTS:-$WORK/artifacts}
export ALIZE_STATE_DIR=$WORK/state

# step NAME COMMAND...: runs a command and prints its time
step() {
    local name=$1 start=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    "$@"
    printf '== %s: %d s\n' "$name" $((SECONDS - start))
}

# new_env FOLDER REQUIREMENT...: a virtual environment with exactly this, in the tested versions
new_env() {
    "$PYTHON" -m venv "$1"
    "$1/bin/python" -m pip --disable-pip-version-check install -qq --constraint constraints.txt "${@:2}"
}

# source_tree FOLDER: what a commit of the working tree would hold. A build inside the repository would pick up stale files of build/.
source_tree() {
    mkdir -p "$1"
    git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
        [ ! -e "$file" ] || printf '%s\0' "$file"
    done | tar -cf - --null --files-from=- | tar -xf - -C "$1"
}

# wheel FOLDER: builds alize's wheel into FOLDER and prints its path
wheel() {
    source_tree "$WORK/wheel-tree" >&2
    "$PYTHON" -m pip --disable-pip-version-check wheel -qq --no-deps --wheel-dir "$1" "$WORK/wheel-tree" >&2
    echo "$1"/alize-*.whl
}

# artifact TARGET KIND: builds the demo model's artifact unless it is there, and sets ARTIFACT to its folder. KIND: a window of the
# demo model, or mixtral
artifact() {
    local model=$ARTIFACTS/model-w$2 options=(--window "$2")
    ARTIFACT=$ARTIFACTS/$1-w$2
    [ "$2" != mixtral ] || { model=$ARTIFACTS/model-mixtral options=(--mixtral) ARTIFACT=$ARTIFACTS/$1-mixtral; }
    [ ! -e "$ARTIFACT/manifest.json" ] || return 0
    make --silent env
    mkdir -p "$ARTIFACTS"
    .venv/bin/alize demo-model "$model" "${options[@]}"
    .venv/bin/alize build "$model" --target "$1" --output "$ARTIFACT"
}

# without PYTHON MODULE...: fails when one of the modules can be imported
without() {
    "$1" - "${@:2}" <<'PYTHON'
import importlib.util, sys
there = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
sys.exit(f"this environment should not have {', '.join(there)}" if there else 0)
PYTHON
}

# contains TEXT FILE: fails, showing the file, when the text isn't in it
contains() {
    grep --quiet --fixed-strings -- "$1" "$2" || {
        printf 'expected %s in:\n' "$1"
        cat "$2"
        return 1
    } >&2
}
