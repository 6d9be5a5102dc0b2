#!/usr/bin/env bash
# From nothing to recommendations on the bundled sample: bash quickstart.sh [--fresh]
#
# Needs Python 3.11 or newer with pip; no GPU, and no network once the requirements are installed. Takes two and
# a half minutes on 2 slow cores after installation. Run again, it reuses what is finished; --fresh starts over.
#
#   DATA_DIR, CKPT_DIR   where the sample and its runs go (datasets, ckpt)      NUM_GPUS   processes, one per GPU (1)
#   SKIP_INSTALL=1       take the installed packages as they are                DRY_RUN=1  print the commands only

# ---- Sample size: what makes this fast. The paper's settings are the scripts' defaults. ------------------------------
SAMPLE_FLAGS=(--num_users=1000 --num_items=400)
TOKENIZER_FLAGS=(
  --sent_emb_model=tfidf --sent_emb_dim=128 --sent_emb_pca=64     # built-in encoder: nothing to download
  --codebook_size=64 "--hidden_sizes=[256,128,64]"                # 400 items need fewer codes than 25,000
  --epochs=120 --steps_per_epoch=12 --save_last=41                # six of the epochs 80..120 are the tokenizers
)
MODEL_FLAGS=(
  --codebook_size=64 --num_layers=1 --num_decoder_layers=1 --d_model=64 --d_ff=128 --num_heads=4 --d_kv=16
)
BATCHES=(--train_batch_size=64 --gradient_accumulation_steps=1)   # about 90 steps an epoch
PRETRAIN_FLAGS=(
  "--sem_id_epochs=[80,88,96,104,112,120]"                        # the ends differ in half of the items
  --epochs=8 --schedule_epochs=12 "--epoch_per_stage=[4,2,2]"     # ends with the learning rate still up
  --influence_sample_ratio=0.2 "${BATCHES[@]}" --lr=0.005 --warmup_steps=100
  --val_delay=7 --eval_interval=1 --val_ratio=1 --save_interval=4 --num_beams=10
)
FINETUNE_FLAGS=(
  --sem_id_epochs=104 --epochs=4 "${BATCHES[@]}" --lr=0.002 --num_beams=10 --test_num_beams=20
)
# The same recommender without multi-identifier pre-training: one tokenizer, as many epochs in all (8 + 4).
SINGLE_FLAGS=(
  --sem_id_epochs=104 --epochs=12 --val_delay=7
  "${BATCHES[@]}" --lr=0.005 --warmup_steps=100 --num_beams=10 --test_num_beams=20
)
# ----------------------------------------------------------------------------------------------------------------------

source "$(dirname "${BASH_SOURCE[0]}")/utils/setup.sh"

FRESH=0
for argument in "$@"; do
  case "$argument" in
    --fresh) FRESH=1 ;;
    *) echo "error: quickstart.sh takes no $argument, only --fresh; sizes are edited at its top" >&2; exit 2 ;;
  esac
done

STARTED=$SECONDS
STEP="installing the requirements"
say_how_to_continue() {
  local code=$?
  [ "$code" = 0 ] || echo "quickstart.sh stopped at this step: $STEP (exit code $code)." \
    "Fix it, then run bash quickstart.sh again; finished steps are reused, an interrupted one goes on." >&2
}
trap say_how_to_continue EXIT

[ "$DRY_RUN" = 1 ] || use_environment requirements.txt
READY=$SECONDS
source "$SETUP_ROOT/utils/launch.sh"
unset PRETRAINED RUN_NAME FINETUNE CKPT_NAME  # a shell that uses the scripts may have them
export DATASET=Sample DATA_DIR CKPT_DIR NUM_GPUS TAU_LIST=1 RESUME=1  # what was interrupted goes on
DATASET_DIR="$DATA_DIR/$DATASET" RUNS="$CKPT_DIR/$DATASET"
PRETRAINING="$RUNS/pretrain_tau1"
TUNED="$RUNS/mtgrec_best_$(value_of sem_id_epochs "${FINETUNE_FLAGS[@]}")"
ALONE="$RUNS/single_scratch_$(value_of sem_id_epochs "${SINGLE_FLAGS[@]}")"
WITH_MTGREC="$RUNS/mtgrec.winner.json" WITHOUT="$RUNS/single.winner.json"  # which run was picked by validation

step() { STEP="$1"; echo; echo "== $STEP ($((SECONDS - STARTED)) s)"; }

# Say that what made file $1 is not run again; fail where it has to be run.
reused() {
  [ -e "$1" ] && [ "$DRY_RUN" != 1 ] && echo "Reused: $1 was made before."
}

# Refuse to mix results of different settings.
check_settings() {
  local settings="${SAMPLE_FLAGS[*]} | ${TOKENIZER_FLAGS[*]} | ${MODEL_FLAGS[*]} | ${PRETRAIN_FLAGS[*]} | ${FINETUNE_FLAGS[*]} | ${SINGLE_FLAGS[*]}"
  local file="$RUNS/quickstart.settings"
  [ "$DRY_RUN" = 1 ] && return
  if [ -e "$file" ] && [ "$(cat "$file")" != "$settings" ]; then
    echo "error: $RUNS was made with other settings than those at the top of quickstart.sh now;" \
      "bash quickstart.sh --fresh starts over" >&2
    return 2
  fi
  mkdir -p "$RUNS"
  echo "$settings" >"$file"
}

step "Checking what is there"
if [ "$FRESH" = 1 ]; then
  echo "Starting over: removing $DATASET_DIR and this script's runs in $RUNS"
  run rm -rf "$DATASET_DIR" "$RUNS/quickstart.settings" "$PRETRAINING" \
    "$TUNED" "$WITH_MTGREC" "$ALONE" "$WITHOUT"
fi
check_settings

step "1/6 Sample dataset"
run "$PYTHON" -m data.sample --data_dir="$DATA_DIR" --dataset="$DATASET" "${SAMPLE_FLAGS[@]}"

step "2/6 Tokenizers: tokenizer/run.sh"
bash "$ROOT/tokenizer/run.sh" "${TOKENIZER_FLAGS[@]}"

step "3/6 Multi-identifier pre-training: pretrain.sh"
reused "$PRETRAINING/results.json" || {
  run rm -rf "$WITH_MTGREC" "$TUNED"  # fine-tuned from an earlier pre-training
  RUN_NAME=pretrain bash "$ROOT/pretrain.sh" "${MODEL_FLAGS[@]}" "${PRETRAIN_FLAGS[@]}"
}

step "4/6 Fine-tuning with one tokenizer: finetune.sh"
reused "$WITH_MTGREC" ||
  PRETRAINED="$PRETRAINING" RUN_NAME=mtgrec REPORT=0 bash "$ROOT/finetune.sh" "${FINETUNE_FLAGS[@]}"

step "5/6 Baseline, one tokenizer from scratch: PRETRAINED=none finetune.sh"
reused "$WITHOUT" ||
  PRETRAINED=none RUN_NAME=single REPORT=0 bash "$ROOT/finetune.sh" "${MODEL_FLAGS[@]}" "${SINGLE_FLAGS[@]}"

step "6/6 Results"
run "$PYTHON" "$ROOT/report.py" "$WITH_MTGREC" --baseline="$WITHOUT" --users=3

cat <<END

Where the files lie
  dataset, embeddings   $DATASET_DIR
  semantic IDs          $DATASET_DIR/rqvae/*.sem_ids
  pre-training          $PRETRAINING
  MTGRec                $WITH_MTGREC
  one tokenizer only    $WITHOUT
  reports               $TUNED/report.html, $PRETRAINING/report.html

More recommendations
  $(printf '%q ' "$PYTHON" "$ROOT/recommend.py" "--model=$WITH_MTGREC")--users=U00001,U00002

Done in $((SECONDS - STARTED)) s, $((SECONDS - READY)) s of it after installation.
END
