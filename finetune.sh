#!/usr/bin/env bash
# Fine-tune a pre-trained recommender with single tokenizers; the winner is the best one on VALIDATION.
#
#   bash finetune.sh                                               from the dataset's newest finished pre-training
#   DATASET=Video_Games PRETRAINED=ckpt/Video_Games/pretrain_tau3 bash finetune.sh
#   PRETRAINED=none RUN_NAME=single bash finetune.sh               from scratch: one identifier per item, no pre-training
#   FINETUNE=joint bash finetune.sh                                the chosen tokenizers together, as the published script
#
# Runs go to <CKPT_DIR>/<DATASET>/<RUN_NAME>_<checkpoint>_<tokenizer>, the choice to <CKPT_DIR>/<DATASET>/<RUN_NAME>.winner.json.
# Also read: DATA_DIR, CKPT_DIR, NUM_GPUS, RESUME, DRY_RUN, REPORT (utils/launch.sh). Flags are added to each command and override it.

source "$(dirname "${BASH_SOURCE[0]}")/utils/launch.sh"

DATASET="${DATASET:-Musical_Instruments}"
RUN_NAME="${RUN_NAME:-finetune}"

# The paper's settings: epochs of pre-training that are fine-tuned from, and the tokenizers that are fine-tuned with,
# counted back from the last one of pre-training (0). With the 25 tokenizers 9976..10000, 9:14/25 are 9986..9991; after a
# pre-training with another number of tokenizers, it is as many of the middle. Layers count from scratch.
# Other data: the epoch that pre-training's own evaluation found best, and the three tokenizers in the middle: those whose
# semantic IDs are nearest to all others'. Before fine-tuning they are 7 to 11% ahead of the first and the last
# (experiments/RESULTS.md).
#                               checkpoints     tokenizers layers
case "$DATASET" in
  Musical_Instruments)       row="90,100,110,120  9:14/25   6" ;;
  Industrial_and_Scientific) row="90,100,110,120  5:9/15    5" ;;
  Video_Games)               row="140,150,160     9:14/25   7" ;;
  *)                         row="best            middle:3  6" ;;
esac
read -r CHECKPOINTS TOKENIZERS LAYERS <<<"$row"

settings=(--lr=0.0002 --epochs=100 --patience=10)
if [ "${PRETRAINED:-}" = none ]; then  # trained as in pre-training, but evaluated and stopped early
  settings=(--lr=0.005 --warmup_steps=10000 --epochs=200 --patience=20
    --num_layers="$LAYERS" --num_decoder_layers="$LAYERS")
fi

case "${FINETUNE:-single}" in
  single) joint=false ;;
  joint) joint=true ;;
  *) echo "error: FINETUNE=$FINETUNE is neither single nor joint" >&2; exit 2 ;;
esac

flags=(--dataset="$DATASET" --data_dir="$DATA_DIR" --ckpt_dir="$CKPT_DIR")
plan="$("$PYTHON" -m training.candidates plan "$CHECKPOINTS" "$TOKENIZERS" \
  --pretrained="${PRETRAINED:-}" --joint=$joint "${flags[@]}" "$@")"

accumulation "$@"
names=()
while IFS=$'\t' read -r name prefix epochs model; do
  names+=("${RUN_NAME}_$name")
  launch finetune "${flags[@]}" --reuse ${RESUME_FLAG:+"$RESUME_FLAG"} \
    "${settings[@]}" --test_num_beams=50 \
    --train_batch_size=256 --gradient_accumulation_steps="$ACCUMULATION" \
    "$@" \
    --run_name="${RUN_NAME}_$name" --pretrained_model="$model" --token_prefix="$prefix" --sem_id_epochs="$epochs" </dev/null
done <<<"$plan"

run "$PYTHON" -m training.candidates select "$RUN_NAME" "${names[@]}" "${flags[@]}" "$@"
report "$RUN_NAME.winner.json" "${flags[@]}" "$@"
