#!/usr/bin/env bash
# Check and measure on one GPU within a budget of minutes: bash benchmarks/gpu.sh [--minutes=12] [--output=DIR]
#
#   bash benchmarks/gpu.sh --device=cpu --minutes=1    a rehearsal with tiny sizes, without a GPU
#
# The flags are those of benchmarks/gpu.py; benchmarks/README.md says what comes out. Installs nothing: takes the active
# virtual environment, else .venv, else PYTHON (python3).

set -euo pipefail

ROOT="$(CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [ -n "${VIRTUAL_ENV:-}" ]; then PYTHON="$VIRTUAL_ENV/bin/python"
elif [ -x "$ROOT/.venv/bin/python" ]; then PYTHON="$ROOT/.venv/bin/python"
else PYTHON="${PYTHON:-python3}"
fi
PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" -m benchmarks.gpu "$@"
