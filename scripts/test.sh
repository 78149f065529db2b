#!/bin/sh
# Set everything up and run all tests:  sh scripts/test.sh
# Arguments go to pytest, for example  sh scripts/test.sh tests/test_cli.py -k chat
EXTRAS=test
. "$(dirname -- "$0")/setup.sh"

cd "$ROOT"
exec "$PYTHON_IN_VENV" -m pytest "$@"
