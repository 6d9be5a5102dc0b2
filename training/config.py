"""The settings of pre-training and fine-tuning. Names and defaults are the reference code's, where it has the flag."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from data.token_table import level_sizes
from evaluation.metrics import METRICS, parse_metric
from model.recommender import NETWORKS, Architecture
from training.curriculum import RULES
from utils.config import Epochs, expand_epochs
from utils.errors import InputError

# Flags that a pre-trained model settles: its architecture, but for the dropout rate, which is the run's own.
SIZE_FLAGS = tuple(field.name for field in fields(Architecture) if field.name not in ("level_sizes", "dropout_rate"))
ARCHITECTURE_FLAGS = ("n_codebooks", "codebook_size", *SIZE_FLAGS)

# What a flag's value must be, in the words of the message; every other number must be positive.
POSITIVE = "must be positive", lambda value: 0 < value < math.inf
NOT_NEGATIVE = "must not be negative", lambda value: 0 <= value < math.inf
SHARE = "must be above 0 and at most 1", lambda value: 0 < value <= 1
IS_NAME = (
    "must be the name of a folder, not a path",
    lambda value: value == Path(value).name and value not in ("", ".", ".."),
)
RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("weight_decay", "warmup_steps", "val_delay", "checkpoint_minutes"), NOT_NEGATIVE),
    **dict.fromkeys(("train_user_ratio", "val_ratio", "test_ratio", "influence_sample_ratio"), SHARE),
    **dict.fromkeys(("dataset", "run_name"), IS_NAME),
    "dropout_rate": ("must be at least 0 and below 1", lambda value: 0 <= value < 1),
    "epoch_per_stage": ("must be a list of stages of 1 or more epochs", lambda value: min(value, default=0) >= 1),
    "rand_seed": ("must be at least 0 and below 2**32", lambda value: 0 <= value < 2**32),
}

# Flags of either command that choose by name.
CHOICES = {
    "mixed_precision": ("no", "bf16"),
    "val_users": ("all", "new"),
    "feed_forward_proj": ("relu", "gated-gelu"),
    "curriculum": RULES,
    "network": NETWORKS,
}


class BaseConfig:
    """What the settings of every run on a dataset's splits share, baselines' too: no fields, but their checks.

    It reads topk, metrics, val_metric, val_users, train_user_ratio, overwrite and resume.
    """

    @property
    def metric_names(self) -> list[str]:
        """Every metric at every cut-off, such as ndcg@5."""
        return [f"{metric}@{k}" for k in self.topk for metric in self.metrics]

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        found = []
        for name, value in vars(self).items():
            rule, holds = RANGES.get(name, POSITIVE)
            if (name in RANGES or type(value) in (int, float)) and value is not None and not holds(value):
                found.append(f"{name}={value} {rule}")
            if name in CHOICES and value not in CHOICES[name]:
                found.append(f"{name}={value} must be {' or '.join(CHOICES[name])}")
        if self.overwrite and self.resume:
            found.append("overwrite starts anew and resume goes on; give one of them")
        if self.val_users == "new" and self.train_user_ratio == 1:
            found.append("val_users=new needs users that training does not see: train_user_ratio below 1")
        wrong = [name for name in self.metrics if name not in METRICS]
        found += [f"metrics has {name!r}; there are {' and '.join(METRICS)}" for name in wrong]
        if not self.metrics or not self.topk or min(self.topk) < 1:
            found.append(f"metrics={self.metrics} and topk={self.topk} must not be empty, cut-offs from 1")
        try:
            parse_metric(self.val_metric)
            if self.val_metric not in self.metric_names:
                found.append(f"val_metric={self.val_metric} is not among metrics={self.metrics} at topk={self.topk}")
        except ValueError as error:
            found.append(f"val_metric: {error}")
        return found


@dataclass
class TrainingConfig(BaseConfig):
    """What both commands share."""

    dataset: str = "Musical_Instruments"
    """Name of the dataset's folder."""
    data_dir: str = "datasets/"
    """Folder that holds dataset folders."""
    ckpt_dir: str = "ckpt/"
    """Folder where runs go: <ckpt_dir>/<dataset>/<run_name>."""
    run_name: str | None = None
    """Name of the run's folder; by default made of the main settings."""
    overwrite: bool = False
    """Start anew in a run folder that is already there, deleting what it holds."""
    reuse: bool = False
    """Do nothing if the run is already finished with the same settings."""
    resume: bool = False
    """Go on with the unfinished run in the folder, exactly where it was; without one, start anew."""
    checkpoint_minutes: float = 10.0
    """Minutes between two saved states for --resume; 0 saves after every step, with several processes every tenth."""
    pretrained_model: str = ""
    """Run folder, model folder, hf:user/name or reference-code .pth file to start from. Empty: from scratch."""
    allow_other_identifiers: bool = False
    """Start from pretrained_model although it was trained with other semantic IDs: its tokens then mean other items."""
    rand_seed: int = 2024
    """Seed of weights, order, tokenizer draws and dropout."""
    reproducibility: bool = True
    """Choose deterministic kernels where there are any."""
    mixed_precision: str = "no"
    """Precision of training and influence estimation: no (float32) or bf16. Evaluation is always float32."""
    log_with: str = "tensorboard"
    """Tracker, as Accelerate names them (tensorboard, wandb, ...), or none."""
    log_dir: str | None = None
    """Folder of the text log; by default the run's folder."""
    tensorboard_log_dir: str | None = None
    """Folder of the tracker's files; by default the run's folder."""
    results_dir: str | None = None
    """Folder of result files per user, <results_dir>/<dataset>/<run_name>; by default they lie in the run's folder."""

    token_prefix: str | list[str] | None = None
    """Prefix, or list of prefixes, of the .sem_ids files; by default the only one in the dataset's rqvae/ folder. A
    prefix may name its own epochs, as in letter/sentence-t5-base_256,256,256,256@18:20."""
    token_suffix: str = "sem_ids"
    """Suffix of the files with semantic IDs."""
    sem_id_epochs: Epochs | None = None
    """RQ-VAE epochs whose semantic IDs are used: 9986, [9986,9990], 9976:10000 (inclusive). By default all."""
    num_tokenizers: int | None = None
    """Without sem_id_epochs: use only that many of the last epochs there are."""
    n_codebooks: int = 3
    """Levels of a semantic ID without disambiguation."""
    codebook_size: int | list[int] = 256
    """Codes per level, or a list per level, with or without the disambiguation level's."""
    n_user_tokens: int = 1
    """User tokens in the vocabulary; a user's is chosen by id modulo this."""
    max_item_seq_len: int = 20
    """Items of history that are kept, the last ones."""

    network: str = "t5"
    """Kind of network that is trained from scratch: t5, or one of those added to the table of networks."""
    num_layers: int = 3
    """Encoder layers."""
    num_decoder_layers: int = 3
    """Decoder layers."""
    d_model: int = 128
    """Width of the network."""
    d_ff: int = 512
    """Width of the feed-forward layers."""
    num_heads: int = 4
    """Attention heads."""
    d_kv: int = 64
    """Width of one head."""
    dropout_rate: float = 0.1
    """Dropout."""
    feed_forward_proj: str = "relu"
    """Feed-forward type: relu or gated-gelu."""

    train_user_ratio: float = 1.0
    """Share of the users whose histories are trained on, drawn once; the test always has all of them."""
    train_batch_size: int = 256
    """Training examples per process and batch."""
    gradient_accumulation_steps: int = 1
    """Batches per process and optimizer step; the global batch is batch x processes x this."""
    weight_decay: float = 0.05
    """AdamW's weight decay, on all parameters."""
    steps: int | None = None
    """Length of the schedule in batches of one process; sets the number of epochs too. By default epochs counts."""
    schedule_epochs: int | None = None
    """Epochs after which the learning rate would reach 0, by default epochs; more of them end training on the way."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    eval_interval: int = 1
    """Evaluate at 1-based epoch e when e > val_delay and e is a multiple of this."""
    topk: list[int] = field(default_factory=lambda: [5, 10])
    """Cut-offs of the metrics."""
    metrics: list[str] = field(default_factory=lambda: ["ndcg", "recall"])
    """Metrics: ndcg, recall and mrr."""
    val_metric: str = "ndcg@10"
    """Metric that picks the best checkpoint on validation."""
    val_users: str = "all"
    """Whose validation targets count: all users', or only new ones', whom train_user_ratio keeps from training."""
    val_ratio: float = 1.0
    """Share of the validation users that evaluation looks at, drawn once; influence always uses all of them."""
    test_ratio: float = 1.0
    """Share of the users that the test looks at, drawn once; for pre-trainings whose own test nobody reads."""
    num_beams: int = 20
    """Beams in validation."""
    constrained: bool = False
    """Generate only semantic IDs of existing items, by a prefix trie."""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        found = super().problems()
        if self.schedule_epochs is not None and (self.steps is not None or self.schedule_epochs < self.epochs):
            found.append(
                f"schedule_epochs={self.schedule_epochs} must be at least epochs={self.epochs}, and needs no steps"
            )
        if self.token_prefix == []:
            found.append("token_prefix is an empty list")
        for name in ("num_beams", "test_num_beams"):
            beams = getattr(self, name)
            if beams and self.topk and max(self.topk) > beams:
                found.append(f"topk={self.topk} asks for more items than there are beams ({name}={beams})")
        for check, *given in ((level_sizes, self.n_codebooks, self.codebook_size), (expand_epochs, self.sem_id_epochs)):
            try:
                check(*given)
            except InputError as error:
                found.append(str(error))
        return found


@dataclass
class PretrainConfig(TrainingConfig):
    """Settings of pre-training with the curriculum over tokenizers."""

    lr: float = 0.005
    """Highest learning rate."""
    warmup_steps: int = 10000
    """Warm-up, in batches of one process."""
    epochs: int = 200
    """Epochs in all."""
    epoch_per_stage: list[int] = field(default_factory=lambda: [60, 20, 20, 20, 20, 20, 20])
    """Epochs of each curriculum stage; stages that do not fit into `epochs` are dropped from the end."""
    curriculum: str = "influence"
    """How tokenizers are sampled after the first stage: influence (the paper's) or uniform."""
    tau: float = 1.0
    """Temperature of the sampling probabilities."""
    influence_sample_ratio: float = 1.0
    """Share of the training examples that influence is estimated on, the same ones for every tokenizer."""
    load_best_for_next_stage: bool = False
    """Start each stage from the best weights so far instead of the latest."""
    save_interval: int = 10
    """Keep a checkpoint every that many epochs; the last epoch's is always kept."""
    patience: int | None = 50
    """Stop when the best epoch lies that many epochs back."""
    val_delay: int = 100
    """No evaluation up to and including this epoch."""
    eval_batch_size: int = 256
    """Users per process and batch in evaluation."""
    test_num_beams: int | None = None
    """Beams in the test; by default num_beams."""


@dataclass
class FinetuneConfig(TrainingConfig):
    """Settings of fine-tuning, or of training from scratch."""

    lr: float = 0.001
    """Highest learning rate (the published script uses 0.0002)."""
    warmup_steps: int = 0
    """Warm-up, in batches of one process."""
    epochs: int = 100
    """Epochs at most."""
    save_interval: int | None = None
    """Keep a checkpoint every that many epochs; by default only the best."""
    patience: int | None = 10
    """Stop when the best epoch lies that many epochs back."""
    val_delay: int = 0
    """No evaluation up to and including this epoch."""
    eval_batch_size: int = 128
    """Users per process and batch in evaluation."""
    test_num_beams: int | None = 50
    """Beams in the test."""
