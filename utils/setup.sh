# shellcheck shell=bash
# Sourced by quickstart.sh, serve.sh, test.sh and .ci/run: a Python environment with the project's requirements.
#
#   PYTHON          the interpreter that .venv is made with (the first python3 from 3.11 on)
#   SKIP_INSTALL=1  take the installed packages as they are

set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/switches.sh"
SETUP_ROOT="$(CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Whether $1 is a Python of version 3.11 or newer.
recent_python() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Print the interpreter to make .venv with.
find_python() {
  local candidate candidates=(python3 python3.14 python3.13 python3.12 python3.11 python)
  if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    if recent_python "$candidate"; then echo "$candidate"; return; fi
  done
  echo "error: Python 3.11 or newer is needed, and ${candidates[0]} is $("${candidates[0]}" --version 2>&1);" \
    "install it, or name one: PYTHON=/path/to/python3.11 bash $0" >&2
  return 2
}

# Print the requirements of file $2 that $1's packages don't meet; a local build such as 2.13.0+cpu meets 2.13.0.
missing_requirements() {
  "$1" - "$2" <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def pins(path):
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.startswith("-r "):
            yield from pins(path.parent / line[3:].strip())
        elif line.strip() and not line.startswith("#"):
            yield line.strip()


def installed(name):
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return None


print(*[pin for pin in pins(Path(sys.argv[1])) if installed(pin.split("==")[0]) != pin.split("==")[1]])
PYTHON
}

# Use the active virtual environment, or make .venv; install the requirements of the project's file $1 if need be.
use_environment() {
  local python missing
  if [ -z "${VIRTUAL_ENV:-}" ]; then
    export VIRTUAL_ENV="$SETUP_ROOT/.venv"
    if ! "$VIRTUAL_ENV/bin/python" -c "" 2>/dev/null; then
      python="$(find_python)" || exit 2
      echo "Making $VIRTUAL_ENV with $("$python" --version)"
      "$python" -m venv --clear "$VIRTUAL_ENV" || {
        echo "error: $python could not make $VIRTUAL_ENV (Debian and Ubuntu: apt install python3-venv)" >&2
        exit 1
      }
    fi
  fi
  recent_python "$VIRTUAL_ENV/bin/python" || {
    echo "error: $VIRTUAL_ENV has $("$VIRTUAL_ENV/bin/python" --version 2>&1); Python 3.11 or newer is needed" >&2
    exit 2
  }
  [ "$SKIP_INSTALL" = 1 ] && return
  missing="$(missing_requirements "$VIRTUAL_ENV/bin/python" "$SETUP_ROOT/$1")"
  if [ -n "$missing" ]; then
    # an environment whose making was interrupted, or one of uv, has no pip
    "$VIRTUAL_ENV/bin/python" -m pip --version >/dev/null 2>&1 || "$VIRTUAL_ENV/bin/python" -m ensurepip >/dev/null || {
      echo "error: $VIRTUAL_ENV has no pip; install $1 there yourself (missing: $missing), then set SKIP_INSTALL=1" >&2
      exit 1
    }
    echo "Installing $1 into $VIRTUAL_ENV (missing: $missing)"
    "$VIRTUAL_ENV/bin/python" -m pip install --quiet --disable-pip-version-check -r "$SETUP_ROOT/$1" || {
      echo "error: pip could not install $1; see its message above, then run the same command again" >&2
      exit 1
    }
  fi
}
