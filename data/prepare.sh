#!/usr/bin/env bash
# Download a category of Amazon Reviews 2023 and make its dataset folder, as the paper's three are made.
#
#   bash data/prepare.sh                                   Musical_Instruments
#   DATASET=Video_Games bash data/prepare.sh               another category
#   RAW_DIR=/data/raw bash data/prepare.sh --k_core=10     files there are used; any flag of python -m data.prepare --help
#   DRY_RUN=1 bash data/prepare.sh                         only print the commands
#
# Needs about 1 GB of disk for a category of the paper, and a network unless the files are in RAW_DIR already. Downloads
# go on where they stopped. Your own files: python -m data.prepare --help.

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/../utils/launch.sh"

DATASET="${DATASET:-Musical_Instruments}"
RAW_DIR="${RAW_DIR:-$DATA_DIR/raw}"
BASE_URL="${BASE_URL:-https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023}"

INTERACTIONS="$RAW_DIR/$DATASET.csv.gz"
ITEMS="$RAW_DIR/meta_$DATASET.jsonl.gz"
INTERACTIONS_URL="$BASE_URL/benchmark/5core/rating_only/$DATASET.csv.gz"
ITEMS_URL="$BASE_URL/raw/meta_categories/meta_$DATASET.jsonl.gz"

# Rows of the official 5-core files: the interactions of the paper's table 1.
case "$DATASET" in
  Musical_Instruments)       ROWS=511836 ;;
  Industrial_and_Scientific) ROWS=412947 ;;
  Video_Games)               ROWS=814586 ;;
  *)                         ROWS="" ;;
esac

# Download $2 to file $1, going on with what an interrupted download left in $1.part.
fetch() {
  if [ -s "$1" ]; then echo "$1: used as it is"; return; fi
  run mkdir -p "$RAW_DIR"
  run curl --fail --location --retry 3 --continue-at - --output "$1.part" "$2" || {
    echo "error: $2 could not be downloaded; without a network, put $(basename "$INTERACTIONS") and" \
      "$(basename "$ITEMS") of Amazon Reviews 2023 (https://amazon-reviews-2023.github.io) into $RAW_DIR" >&2
    exit 1
  }
  run gzip -t "$1.part" || {
    echo "error: $1.part is not a whole gzip file; remove it and run the same command again" >&2
    exit 1
  }
  run mv "$1.part" "$1"
}

# Refuse a file with another number of rows than the paper's.
check_rows() {
  local rows
  [ "$DRY_RUN" != 1 ] && [ -n "$ROWS" ] || return 0
  rows="$(gzip -dc "$INTERACTIONS" | awk 'END { print NR - 1 }')"
  [ "$rows" = "$ROWS" ] || {
    echo "error: $INTERACTIONS has $rows rows, the official 5-core file has $ROWS; remove it and run the same command" \
      "again, or prepare other files with python -m data.prepare" >&2
    exit 2
  }
}

fetch "$INTERACTIONS" "$INTERACTIONS_URL"
fetch "$ITEMS" "$ITEMS_URL"
check_rows
run "$PYTHON" -m data.prepare --dataset="$DATASET" --data_dir="$DATA_DIR" --source=amazon2023 \
  --interactions="$INTERACTIONS" --items="$ITEMS" "$@"
