# shellcheck shell=bash
# Sourced by utils/setup.sh and utils/launch.sh: variables that switch something on (1, yes, true, on) or off (0, no, false, off).

# Set variable $1 to 1 or 0 by what it says, to $2 where it is unset or empty; refuse anything else.
switch() {
  case "${!1:-$2}" in
    1 | [Yy][Ee][Ss] | [Tt][Rr][Uu][Ee] | [Oo][Nn]) printf -v "$1" 1 ;;
    0 | [Nn][Oo] | [Ff][Aa][Ll][Ss][Ee] | [Oo][Ff][Ff]) printf -v "$1" 0 ;;
    *) echo "error: $1=${!1} is neither on (1, yes, true, on) nor off (0, no, false, off)" >&2; exit 2 ;;
  esac
}

# All at once, so that a wrong one is refused before anything is done.
switch DRY_RUN 0
switch RESUME 0
switch REPORT 1
switch SKIP_INSTALL 0
if [ "${NUM_GPUS:-1}" != 1 ]; then switch CPU 0; fi  # some systems have a CPU of their own: CPU=x86_64
