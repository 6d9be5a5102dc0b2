#!/usr/bin/env bash
# Pre-train the recommender on all tokenizers with the curriculum, once for each tau.
#
#   bash pretrain.sh                                               Musical_Instruments, the paper's settings
#   DATASET=Video_Games NUM_GPUS=4 bash pretrain.sh
#   DATASET=MyData RUN_NAME=small TAU_LIST=3 bash pretrain.sh --num_layers=2 --epochs=50 --val_delay=19
#
# Needs <DATA_DIR>/<DATASET> with semantic IDs (tokenizer/run.sh makes them). Runs go to <CKPT_DIR>/<DATASET>/<RUN_NAME>_tau<tau>.
# Also read: DATA_DIR, CKPT_DIR, NUM_GPUS, RESUME, DRY_RUN, REPORT (utils/launch.sh). Flags are added to the command and override it.

source "$(dirname "${BASH_SOURCE[0]}")/utils/launch.sh"

DATASET="${DATASET:-Musical_Instruments}"
RUN_NAME="${RUN_NAME:-pretrain}"

# The paper's settings for its datasets: encoder and decoder layers, the last tokenizers that are used, temperatures.
# The last column is not the paper's (1: all examples): the share of the training examples that influence is estimated on.
# 10,000 examples reproduce the order of the tokenizers with a rank correlation of 0.87 to 0.96 (benchmarks/README.md);
# 0.1 of these datasets are 26,000 or more, and cut the estimates from 204 to 47 epochs' worth of computing.
# Nor is evaluation: where the paper says which epochs are fine-tuned from (finetune.sh) it waits for the end, all tokenizers
# on all users. Other data are evaluated on the way, on a quarter of the users, so that the best epoch is kept: on a small
# dataset the last one had overfitted, and fine-tuning from it was 11% behind fine-tuning from the best one in Recall@10, with
# one seed (experiments/RESULTS.md). With fewer than 60 epochs lower --val_delay.
evaluation=(--val_delay=199)
#                               layers  tokenizers  taus   share
case "$DATASET" in
  Musical_Instruments)       row="6     25          1,3,5  0.1" ;; # best: 3
  Industrial_and_Scientific) row="5     15          1,3,5  0.1" ;; # best: 1
  Video_Games)               row="7     25          1,3,5  0.1" ;;
  *)                         row="6     25          3      1"
                             evaluation=(--val_delay=59 --eval_interval=10 --patience=40 --val_ratio=0.25) ;;
esac
read -r LAYERS TOKENIZERS TAUS SHARE <<<"$row"

accumulation "$@"
given_tau="$(value_of tau "$@")"
taus="$(tr ',' ' ' <<<"${given_tau:-${TAU_LIST:-$TAUS}}")" given_name="$(value_of run_name "$@")"
if [ -n "$given_name" ] && [ "$(wc -w <<<"$taus")" -gt 1 ]; then
  echo "error: --run_name=$given_name is one run, taus are $taus: set RUN_NAME=$given_name instead, for one of each" >&2
  exit 2
fi
for tau in $taus; do
  flags=(
    --dataset="$DATASET" --data_dir="$DATA_DIR" --ckpt_dir="$CKPT_DIR"
    --reuse ${RESUME_FLAG:+"$RESUME_FLAG"}
    --num_layers="$LAYERS" --num_decoder_layers="$LAYERS" --num_tokenizers="$TOKENIZERS"
    --lr=0.005 --warmup_steps=10000 --epochs=200 --epoch_per_stage=[60,20,20,20,20,20,20]
    --train_batch_size=256 --gradient_accumulation_steps="$ACCUMULATION"
    --influence_sample_ratio="$SHARE"
    "${evaluation[@]}"
    "$@"
    --tau="$tau" --run_name="${given_name:-${RUN_NAME}_tau$tau}"  # last: a --config_file may have others
  )
  launch pretrain "${flags[@]}"
  report "$(value_of run_name "${flags[@]}")" "${flags[@]}"
done
