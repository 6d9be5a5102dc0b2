#!/usr/bin/env bash
# Item texts -> embeddings -> RQ-VAE -> semantic IDs: all that pretrain.sh needs.
#
#   bash tokenizer/run.sh                                       Musical_Instruments with the paper's settings
#   DATASET=Video_Games bash tokenizer/run.sh                   another dataset folder of datasets/
#   bash tokenizer/run.sh --epochs=600 --save_last=31           any flag of `python -m tokenizer.train --help`
#   bash tokenizer/run.sh --ckpt_name=rqvae_tiger --vq_type=vq  a second tokenizer beside the first
#   bash tokenizer/run.sh --ckpt_name=letter --kind=letter      another kind: rqkmeans, letter, neighbours (--sem_ids=FILE)
#   DATA_DIR=/data/amazon bash tokenizer/run.sh                 another folder of dataset folders
#   RESUME=1 bash tokenizer/run.sh                              go on with a training that was interrupted
#   DRY_RUN=1 bash tokenizer/run.sh                             only print the commands
#
# Needs the dataset's metadata.sentence.json, all_item_seqs.json and id_mapping.json. One process; a GPU is used where
# there is one. Run again, it reuses what fits the settings; it refuses what does not, unless --overwrite is given.

# ---- the settings; edit here --------------------------------------------------------------------
DATASET="${DATASET:-Musical_Instruments}"
CKPT_NAME="${CKPT_NAME:-rqvae}"

# The paper's datasets have 12 or 13 steps an epoch. Other data get 12 equal ones, and of the epochs of the last half 25 are
# chosen so that the first and the last differ in about half of the items: that is how the paper's are related (its Table 5).
# 600 epochs are 7,200 steps: 12,000 items take about half an hour on two cores, and more epochs drift slower. The paper's
# 10,000 epochs end with tiny steps. So that 600 do, too, the learning rate falls to 0: with a constant one, codes jump back
# and forth, and neighbours differ in 29% of the items instead of 5% (experiments/RESULTS.md). With --save_last the last
# epochs are taken, at a constant rate.
# dataset                   text encoder                             dim  PCA  encoder layers            epochs  tokenizers
SETTINGS="
  Musical_Instruments       sentence-transformers/sentence-t5-base   768  128  [2048,1024,512,256,128]   10000   --save_last=51 --scheduler_type=constant
  Industrial_and_Scientific sentence-transformers/sentence-t5-base   768  128  [2048,1024,512,256,128]   10000   --save_last=51 --scheduler_type=constant
  Video_Games               sentence-transformers/sentence-t5-base   768  128  [2048,1024,512,256,128]   10000   --save_last=51 --scheduler_type=constant
  default                   sentence-transformers/sentence-t5-base   768  128  [2048,1024,512,256,128]   600     --steps_per_epoch=12 --num_tokenizers=25 --drift=0.5 --scheduler_type=linear
"
FLAGS=(
  --n_codebooks=3 --codebook_size=256 --vq_type=ema --beta=0.25 --dropout=0.0
  --learner=adagrad --lr=0.001 --weight_decay=0.0 --warmup_steps=0 --batch_size=2048
  --rand_seed=2024
)

# What a kind sets instead. LETTER: the published sizes; its training of 20,000 epochs is --epochs=20000, its collaborative
# embeddings, a SASRec's, are --cf_emb=sasrec.
# kind     flags
KINDS="
  letter   --n_codebooks=4 --hidden_sizes=[2048,1024,512,256,128,64,32] --sent_emb_pca=-1 --vq_type=vq --learner=adamw --weight_decay=0.0001 --batch_size=1024 --balance=sinkhorn --sinkhorn_epsilon=0.003 --sinkhorn_iterations=50 --cf_emb=svd --cf_weight=0.02 --diversity_weight=0.0001
"
# -------------------------------------------------------------------------------------------------

source "$(dirname "${BASH_SOURCE[0]}")/../utils/launch.sh"

row() { awk -v name="$2" '$1 == name' <<<"$1"; }
SELECTED="$(row "$SETTINGS" "$DATASET")"
read -r _ SENT_EMB_MODEL SENT_EMB_DIM SENT_EMB_PCA HIDDEN_SIZES EPOCHS TOKENIZERS <<<"${SELECTED:-$(row "$SETTINGS" default)}"
read -r _ OF_KIND <<<"$(row "$KINDS" "$(value_of kind "$@")")"
# --save_last wants consecutive epochs; with a falling rate the last ones would hardly differ
[ -z "$(value_of save_last "$@")" ] || TOKENIZERS="${TOKENIZERS/--num_tokenizers*/--scheduler_type=constant}"
FLAGS=(
  --dataset="$DATASET" --data_dir="$DATA_DIR" --ckpt_name="$CKPT_NAME"
  --sent_emb_model="$SENT_EMB_MODEL" --sent_emb_dim="$SENT_EMB_DIM" --sent_emb_pca="$SENT_EMB_PCA"
  --hidden_sizes="$HIDDEN_SIZES" --epochs="$EPOCHS" "${FLAGS[@]}" $TOKENIZERS $OF_KIND ${RESUME_FLAG:+"$RESUME_FLAG"}
)

GIVEN=("${FLAGS[@]}" "$@")
run "$PYTHON" -m tokenizer.embed "${GIVEN[@]}"  # first: it refuses wrong flags before anything is trained
if [ "$(value_of kind "$@"),$(value_of cf_emb "$@")" = letter,sasrec ]; then  # a SASRec as wide as the codebooks
  WIDTH="$(value_of hidden_sizes "${GIVEN[@]}" | grep -o '[0-9]*' | tail -n 1)" SEED="$(value_of rand_seed "${GIVEN[@]}")"
  DEVICE="$(value_of device "$@")" RUN="sasrec_${WIDTH}_seed$SEED" START=--resume
  case " $* " in *" --overwrite "* | *" --overwrite=true "*) START=--overwrite ;; esac
  run "$PYTHON" -m baseline --dataset="$DATASET" --data_dir="$(value_of data_dir "${GIVEN[@]}")" --ckpt_dir="$CKPT_DIR" \
    --run_name="$RUN" --method=sasrec --d_model="$WIDTH" --rand_seed="$SEED" ${DEVICE:+--device="$DEVICE"} $START
  GIVEN+=(--cf_emb="$CKPT_DIR/$DATASET/$RUN/item_embeddings.npy")
fi
for step in train export; do
  run "$PYTHON" -m "tokenizer.$step" "${GIVEN[@]}"
done
