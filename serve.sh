#!/usr/bin/env bash
# Serve a model over HTTP, with a page to try it: bash serve.sh --model=ckpt/Sample/mtgrec.winner.json [flags of serve.py]
#
# Uses the active virtual environment, or makes .venv, and installs requirements-serve.txt into it if need be
# (SKIP_INSTALL=1 takes the installed packages as they are). docs/serving.md has all of it.

source "$(dirname "${BASH_SOURCE[0]}")/utils/setup.sh"
use_environment requirements-serve.txt
exec "$VIRTUAL_ENV/bin/python" "$SETUP_ROOT/serve.py" "$@"
