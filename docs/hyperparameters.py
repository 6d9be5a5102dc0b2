"""Write docs/hyperparameters.md: every flag, its default and meaning from the dataclasses, and advice from NOTES.

python -m docs.hyperparameters
"""

from dataclasses import MISSING, fields
from pathlib import Path

from tokenizer.config import TokenizerConfig
from training.config import FinetuneConfig, PretrainConfig, TrainingConfig
from utils.config import make_parser
from utils.files import write_text

FILE = Path(__file__).with_suffix(".md")

# {flag: (range, the paper's value where it is another than the default, what happens when it is too low or too high)},
# and for the flags of the tokenizer that mean something else in training.
NOTES: dict[str, tuple[str, str, str]] = {
    # where things are
    "dataset": ("name of a folder", "three datasets", ""),
    "data_dir": ("folder", "", ""),
    "ckpt_dir": ("folder", "", ""),
    "run_name": ("name of a folder", "", ""),
    "overwrite": ("true, false", "", ""),
    "reuse": ("true, false", "", ""),
    "resume": ("true, false", "", ""),
    "checkpoint_minutes": ("0 or more", "", "low: time to save; high: more to do again after an interruption"),
    "allow_other_identifiers": ("true, false", "", "true: tokens may mean other items than in pre-training"),
    "pretrained_model": (
        "path or empty",
        "fine-tuning: epochs 90 to 160",
        "too early or too late an epoch costs accuracy",
    ),
    "rand_seed": ("0 to 2^32 - 1", "", "report several seeds: one differs from another by more than small gains"),
    "reproducibility": ("true, false", "", "false may be faster on a GPU"),
    "mixed_precision": ("no, bf16", "", "bf16 is faster on hardware that has it, and rounds"),
    "log_with": ("a tracker, none", "", ""),
    "log_dir": ("folder", "", ""),
    "tensorboard_log_dir": ("folder", "", ""),
    "results_dir": ("folder", "", ""),
    "ckpt_name": ("name of a folder", "", ""),
    "device": ("auto, cpu, cuda, cuda:N", "", ""),
    # tokenizers
    "token_prefix": ("file prefix", "", ""),
    "token_suffix": ("file suffix", "", ""),
    "sem_id_epochs": ("epochs", "the last 15 or 25", "tokenizers too far apart disagree and harm each other (Table 3)"),
    "num_tokenizers": (
        "1 or more",
        "25, 25, 15",
        "few: little variety; many: longer influence estimates and evaluations",
    ),
    "kind": ("rqvae", "", ""),
    "n_codebooks": ("1 or more", "", "few: collisions; many: longer sequences to generate"),
    "codebook_size": ("2 or more", "", "low: collisions; high: codes without items (the report shows both)"),
    "n_user_tokens": ("1 or more", "", "more let the model tell user groups apart, at random"),
    "max_item_seq_len": ("1 or more", "", "low: forgets; high: slower, and long histories are rare"),
    "sent_emb_model": ("name, folder, tfidf", "", "a better encoder of texts gives better semantic IDs"),
    "sent_emb_dtype": ("float32, float16, bfloat16", "", "16 bits are faster and rounded"),
    "sent_emb_prompt": ("text", "", "some encoders want one"),
    "sent_emb_max_length": ("1 or more", "", "low: the ends of texts are lost"),
    "sent_emb_batch_size": ("1 or more", "", "high: out of memory"),
    "sent_emb_dim": ("the encoder's", "", "must be the encoder's"),
    "sent_emb_pca": ("-1, 1 to sent_emb_dim", "", "-1 (none): fewer codes in use; low: texts become alike"),
    "hidden_sizes": ("layer sizes", "", "wide or many: neighbouring epochs differ more (compare drift with Table 5)"),
    "dropout": ("0 to below 1", "", "high: blurred semantic IDs"),
    "beta": ("0 or more", "", "high: the encoder follows the codes and stops learning"),
    "vq_type": ("ema, vq", "vq for TIGER", "vq leaves more codes unused"),
    "learner": ("adagrad, adamw", "", ""),
    "scheduler_type": ("constant, linear", "", "linear: the last epochs hardly differ"),
    "batch_size": ("1 or more", "", "low: restless codebooks; high: few updates an epoch"),
    "save_last": ("1 or more", "51", "must be at least what pre-training uses"),
    # the network
    "num_layers": ("1 or more", "6, 7, 5", "low: underfits; high without pre-training: overfits (Figure 2)"),
    "num_decoder_layers": ("1 or more", "as num_layers", "as num_layers"),
    "d_model": ("1 or more", "", "low: underfits; high: slower, overfits small data"),
    "d_ff": ("1 or more", "", "as d_model"),
    "num_heads": ("1 or more", "", ""),
    "d_kv": ("1 or more", "", ""),
    "dropout_rate": ("0 to below 1", "", "low: overfits; high: underfits"),
    "feed_forward_proj": ("relu, gated-gelu", "", ""),
    # training
    "lr": ("above 0", "0.005; 0.0002 fine-tuning", "low: unfinished at the end; high: loss jumps or becomes NaN"),
    "warmup_steps": (
        "0 or more",
        "10000; 0 fine-tuning",
        "low with a high lr: loss jumps; more than the run: lr never gets up",
    ),
    "epochs": ("1 or more", "200; 100 fine-tuning", "low: underfits; high: time, and overfitting that patience ends"),
    "steps": ("1 or more", "", "as epochs"),
    "schedule_epochs": ("epochs or more", "", "more than epochs: ends on the way, for fine-tuning to go on from"),
    "train_batch_size": ("1 or more", "256 on 4 GPUs", "low: noisy and slow; high: fewer steps, out of memory"),
    "gradient_accumulation_steps": (
        "1 or more",
        "1 on 4 GPUs",
        "batch x GPUs x this should stay 1,024, or lr be changed too",
    ),
    "weight_decay": ("0 or more", "", "low: overfits; high: underfits"),
    "max_grad_norm": ("above 0", "", "low: slow; high: a bad batch can throw training off"),
    "save_interval": ("1 or more", "10", "low: disk; high: fewer checkpoints to fine-tune from"),
    "patience": ("1 or more, null", "50; 10 fine-tuning", "low: stops at a dip; high: time"),
    # the curriculum
    "epoch_per_stage": (
        "list of epochs",
        "",
        "many short stages: much time in influence; few: probabilities lag behind",
    ),
    "curriculum": (
        "influence, uniform",
        "",
        "uniform saves the influence estimates' time (Table 3 says what it costs)",
    ),
    "tau": ("above 0", "1, 3, 5 tried", "low: one tokenizer takes over; high: uniform (the run warns of both)"),
    "influence_sample_ratio": ("above 0, to 1", "", "low: fast, noisy scores"),
    "load_best_for_next_stage": ("true, false", "", "needs evaluations in the stage (val_delay)"),
    # evaluation
    "eval_interval": ("1 or more", "", "low: time; high: the best epoch may lie between"),
    "val_delay": ("0 or more", "199; 0 fine-tuning", "high: no early stopping"),
    "eval_batch_size": ("1 or more", "", "high: out of memory"),
    "topk": ("list", "", "at most num_beams"),
    "metrics": ("ndcg, recall, mrr", "", ""),
    "val_metric": ("a metric @ a cut-off", "", ""),
    "train_user_ratio": ("above 0, to 1", "", "low: a quick trial, to be validated with val_users=new"),
    "val_users": ("all, new", "", "all with train_user_ratio below 1: stops late (experiments/RESULTS.md)"),
    "val_ratio": ("above 0, to 1", "", "low: fast, noisy choice of the best epoch"),
    "test_ratio": ("above 0, to 1", "", "low: metrics that say little"),
    "num_beams": ("max(topk) or more", "", "low: misses items; high: slow, hardly better"),
    "test_num_beams": ("max(topk) or more", "50 fine-tuning", "as num_beams"),
    "constrained": ("true, false", "false", "true: no beam is lost to what is no item; slightly slower"),
}


TOKENIZER_NOTES = {
    "lr": ("above 0", "", "low: unfinished at the end; high: neighbouring epochs differ too much"),
    "epochs": ("1 or more", "", "low: codes unused, collisions; high: time"),
    "warmup_steps": ("0 to epochs", "", ""),
    "weight_decay": ("0 or more", "", "high: latents and codes shrink"),
}


def default_of(config_class: type, name: str) -> str:
    """Return a flag's default as it is typed on the command line."""
    (found,) = (field for field in fields(config_class) if field.name == name)
    value = found.default if found.default_factory is MISSING else found.default_factory()
    if value is MISSING:
        return "required"
    if value is None or value == "":
        return "null" if value is None else "empty"
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


def rows(config_class: type, names: list[str]) -> list[str]:
    """Return the table of some flags of a dataclass."""
    help_of = {action.dest: action.help for action in make_parser(config_class, "", "")._actions}
    lines = ["| flag | default | range | paper | meaning | too low, too high |", "|---|---|---|---|---|---|"]
    notes = NOTES | (TOKENIZER_NOTES if config_class is TokenizerConfig else {})
    for name in names:
        allowed, paper, effect = notes[name]
        meaning = " ".join(help_of[name].split()).replace("|", "\\|").replace("<", "&lt;")
        cells = [f"`{name}`", f"`{default_of(config_class, name)}`", allowed, paper or "default", meaning, effect]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def generate() -> str:
    """Return the page."""
    shared = [field.name for field in fields(TrainingConfig)]
    parts = [
        "# Hyperparameters",
        "",
        "Every flag of the three training scripts, as `--flag=value`; the scripts pass flags on, other commands list",
        "theirs with `--help`. Lists are `[a,b]`, epochs also `9976:10000`. Where the paper's values differ by",
        "dataset, they are for Musical_Instruments, Video_Games and Industrial_and_Scientific, in this order;",
        "*default* means that the default is the paper's, or that the flag says where and how, not what. What too low",
        "and too high do is a rule of thumb.",
        "`python -m docs.hyperparameters` makes this page.",
    ]
    sections = [
        ("Tokenizer (`tokenizer/run.sh`)", TokenizerConfig, [field.name for field in fields(TokenizerConfig)]),
        ("Pre-training and fine-tuning (`pretrain.sh`, `finetune.sh`)", TrainingConfig, shared),
        ("Pre-training only", PretrainConfig, [f.name for f in fields(PretrainConfig) if f.name not in shared]),
        ("Fine-tuning only", FinetuneConfig, [f.name for f in fields(FinetuneConfig) if f.name not in shared]),
    ]
    for title, config_class, names in sections:
        parts += ["", f"## {title}", "", *rows(config_class, names)]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    write_text(FILE, generate())
    print(FILE)
