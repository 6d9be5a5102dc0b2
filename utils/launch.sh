# Sourced by the shell scripts: finds the project and its Python, and starts commands.
#
#   DATASET    name of the dataset folder                 DATA_DIR   folder that holds dataset folders (datasets)
#   NUM_GPUS   processes to start, one per GPU (1)        CKPT_DIR   folder where runs go (ckpt)
#   DRY_RUN=1  print the commands instead of running them  CPU=1     several processes on the CPU
#   RESUME=1   go on with what was interrupted, exactly where it was; start anew where there is nothing to resume
#   REPORT=0   make no report.html at the end
#
# 1, yes, true and on switch on; 0, no, false and off switch off.
# Paths given by the user are relative to the folder the script is called from; the defaults lie in the project.

set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/switches.sh"
ROOT="$(CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1 TOKENIZERS_PARALLELISM=false

if [ -n "${VIRTUAL_ENV:-}" ]; then PYTHON="$VIRTUAL_ENV/bin/python"
elif [ -x "$ROOT/.venv/bin/python" ]; then PYTHON="$ROOT/.venv/bin/python"
else PYTHON="$(command -v python3 || command -v python)"
fi

[ "$DRY_RUN" = 1 ] || "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("torch", "jsonargparse"))))' || {
  echo "error: $PYTHON lacks the packages of requirements.txt; bash quickstart.sh installs them, or" \
    "$PYTHON -m pip install -r $ROOT/requirements.txt" >&2
  exit 1
}

# Print the last value that the flags after $1 give to --$1, as --$1=value or --$1 value.
value_of() {
  local name="--$1" found=
  shift
  while [ $# -gt 0 ]; do
    case "$1" in
      "$name="*) found="${1#*=}" ;;
      "$name") found="${2:-}" ;;
    esac
    shift
  done
  echo "$found"
}

# A dataset given as a flag decides the settings that the script has for it, as DATASET does.
given="$(value_of dataset "$@")"
DATASET="${given:-${DATASET:-}}"

DATA_DIR="${DATA_DIR:-$ROOT/datasets}"
CKPT_DIR="${CKPT_DIR:-$ROOT/ckpt}"
NUM_GPUS="${NUM_GPUS:-1}"

if [ "$RESUME" = 1 ]; then RESUME_FLAG=--resume; else RESUME_FLAG=""; fi

if [[ ! "$NUM_GPUS" =~ ^0*[1-9][0-9]{0,5}$ ]]; then
  echo "error: NUM_GPUS=$NUM_GPUS is not a number of processes" >&2
  exit 2
fi
NUM_GPUS=$((10#$NUM_GPUS))  # 08 is 8, not an octal number

# Print a command under DRY_RUN=1, else run it. SIGTERM is passed on to it, also where the script alone got it (kill,
# docker stop): the command saves its state and ends with code 75, and then so does the script.
run() {
  if [ "$DRY_RUN" = 1 ]; then printf '%q ' "$@"; echo; return; fi
  local child code=0
  (trap - INT; exec "$@") &  # bash has commands in the background ignore SIGINT
  child=$!
  trap 'kill -TERM "$child" 2>/dev/null || :' TERM
  trap '' INT  # from a terminal the command has it too
  while wait "$child" || :; kill -0 "$child" 2>/dev/null; do :; done
  wait "$child" || code=$?
  trap - TERM INT
  return "$code"
}

# Run a Python module: plainly for one process, under accelerate for more.
launch() {
  if [ "$NUM_GPUS" = 1 ]; then
    run "$PYTHON" -m "$@"
  else
    local where=()
    if [ "$CPU" = 1 ]; then where=(env ACCELERATE_USE_CPU=true); fi  # accelerate's --cpu would start one process
    run ${where[@]+"${where[@]}"} "$PYTHON" -m accelerate.commands.launch --multi_gpu --num_processes "$NUM_GPUS" \
      --num_machines 1 --mixed_precision no --dynamo_backend no --module "$@"
  fi
}

# Set ACCUMULATION so that fewer GPUs than the paper's 4 keep its global batch of 4 x 256 examples, and say so.
accumulation() {
  ACCUMULATION=$((NUM_GPUS < 4 ? 4 / NUM_GPUS : 1))
  case " $*" in *" --gradient_accumulation_steps"*) return ;; esac
  if [ "$NUM_GPUS" != 4 ]; then
    echo "NUM_GPUS=$NUM_GPUS, the paper has 4: gradients are accumulated over $ACCUMULATION batches, so a step sees" \
      "$((NUM_GPUS * ACCUMULATION)) batches (paper: 4 of 256 examples; --gradient_accumulation_steps overrides)" >&2
  fi
}


# Make report.html of what file or folder $1 of <ckpt_dir>/<dataset> names, both as in the flags after it. The run stands
# even where its report fails; a signal that stops the report stops the script.
report() {
  [ "$REPORT" = 1 ] || return 0
  local code=0
  run "$PYTHON" -m report --run="$(value_of ckpt_dir "${@:2}")/$(value_of dataset "${@:2}")/$1" --users=0 --reuse || code=$?
  case $code in
    0) ;;
    75|130|143) return "$code" ;;
    *) echo "the report could not be made; the run itself is finished" >&2 ;;
  esac
}
