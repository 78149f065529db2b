#!/bin/sh
# Set everything up and answer a prompt:  sh scripts/try.sh "Why is the sky blue?"
# Further arguments go to `hasten generate`. The first run fetches the default model.
EXTRAS=
. "$(dirname -- "$0")/setup.sh"

QUESTION=${1:-Why is the sky blue?}
[ "$#" -gt 0 ] && shift
exec "$PYTHON_IN_VENV" -m hasten generate --prompt "$QUESTION" "$@"
