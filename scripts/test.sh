#!/bin/sh
# Set everything up and run all tests:  sh scripts/test.sh
# Arguments go to pytest, for example  sh scripts/test.sh tests/test_cli.py -k chat
# The tests are shared among processes, one more than there are processors;  -n 0  keeps them in one.
EXTRAS=test
. "$(dirname -- "$0")/setup.sh"

cd "$ROOT"
exec "$PYTHON_IN_VENV" -m pytest -n auto --dist worksteal "$@"
