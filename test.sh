#!/usr/bin/env bash
# Run the tests, one process per core: bash test.sh
#
#   bash test.sh -k beam      with arguments, which are pytest's, in one process
#   bash test.sh --faults     kill and resume runs at many more moments than the ordinary tests do (docs/reliability.md)
#
# Uses the active virtual environment, or makes .venv, and installs requirements-dev.txt into it if need be.

source "$(dirname "${BASH_SOURCE[0]}")/utils/setup.sh"
use_environment requirements-dev.txt
cd "$SETUP_ROOT"
if [ "${1:-}" = --faults ]; then
  shift
  export FAULTS=long
  set -- tests/faults tests/test_fuzz.py "$@"
fi
if [ $# = 0 ]; then set -- --numprocesses=logical --dist=loadfile; fi
exec "$VIRTUAL_ENV/bin/python" -m pytest "$@"
