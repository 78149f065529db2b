# Sourced by try.sh and test.sh: leaves a virtual environment with Hasten and the extras named in EXTRAS, and sets PYTHON_IN_VENV.
#
#   PYTHON   the Python to make the environment with (default: the first of python3, python that is new enough)
#   VENV     where the environment is (default: .venv in this repository)
#
# A second run installs nothing unless what is installed or built changed.
set -eu

ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
VENV=${VENV:-$ROOT/.venv}
EXTRAS=${EXTRAS:-}

stop() {
    printf 'hasten: %s\n' "$1" >&2
    exit 1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" || stop "$PYTHON is not Python 3.11 or newer; set PYTHON to one that is."
        return
    fi
    for PYTHON in python3 python python3.14 python3.13 python3.12 python3.11; do
        if new_enough "$PYTHON"; then return; fi
    done
    stop "Python 3.11 or newer is needed and none was found; install it, or set PYTHON to where it is."
}

make_environment() {
    choose_python
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
        stop "this Python cannot make virtual environments; install its venv module (on Debian and Ubuntu: apt install python3-venv)."
    printf 'Making a virtual environment in %s\n' "$VENV" >&2
    "$PYTHON" -m venv "$VENV" || stop "the virtual environment $VENV could not be made; see the lines above."
}

install() {
    printf 'Installing Hasten%s into %s (a few minutes the first time)\n' "${EXTRAS:+ with [$EXTRAS]}" "$VENV" >&2
    (cd "$ROOT" && "$PYTHON_IN_VENV" -m pip install --quiet --disable-pip-version-check \
        --constraint constraints.txt --editable ".${EXTRAS:+[$EXTRAS]}") ||
        stop "the installation failed; see the lines above, and run the same command again to go on."
}

# With the extras asked for; an environment that has more of them will do.
installed() {
    for stamp in "$STAMP"*; do
        if [ "$(cat "$stamp" 2>/dev/null)" = "$WANTED" ]; then return 0; fi
    done
    return 1
}

PYTHON_IN_VENV=$VENV/bin/python
if ! new_enough "$PYTHON_IN_VENV"; then make_environment; fi

WANTED=$(cd "$ROOT" && {
    pwd
    cat pyproject.toml constraints.txt setup.py src/hasten/native/build.py src/hasten/native/*.cpp src/hasten/native/*.h
} | cksum)
STAMP=$VENV/hasten-installed${EXTRAS:+-$EXTRAS}
if ! installed; then
    install
    printf '%s\n' "$WANTED" >"$STAMP"
fi
