"""The settings of a baseline. Names are those of pre-training and fine-tuning, numbers those of SASRec."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from evaluation.run import is_seeded
from training.config import BaseConfig


@dataclass
class BaselineConfig(BaseConfig):
    """Settings of `baseline.py`; those after `max_item_seq_len` are SASRec's."""

    dataset: str = "Musical_Instruments"
    """Name of the dataset's folder."""
    method: Literal["popular", "itemknn", "sasrec"] = "sasrec"
    """The method: the most popular items, neighbours of the last items, or a causal transformer over items."""
    data_dir: str = "datasets/"
    """Folder that holds dataset folders."""
    ckpt_dir: str = "ckpt/"
    """Folder where runs go: <ckpt_dir>/<dataset>/<run_name>."""
    run_name: str | None = None
    """Name of the run's folder; by default the method's, with the seed where one is used."""
    overwrite: bool = False
    """Start anew in a run folder that is already there, deleting what it holds."""
    reuse: bool = False
    """Do nothing if the run is already finished with the same settings."""
    resume: bool = False
    """As reuse, and start an unfinished run anew: no state is saved on the way, a training takes minutes."""
    results_dir: str | None = None
    """Folder of result files per user, <results_dir>/<dataset>/<run_name>; by default they lie in the run's folder."""
    rand_seed: int = 2024
    """Seed of weights, order, dropout and of the users trained on."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:1"""

    train_user_ratio: float = 1.0
    """Share of the users whose histories are trained on, drawn once; the test always has all of them."""
    val_users: Literal["all", "new"] = "all"
    """Whose validation targets count: all users', or only new ones', whom train_user_ratio keeps from training."""
    topk: list[int] = field(default_factory=lambda: [5, 10])
    """Cut-offs of the metrics."""
    metrics: list[str] = field(default_factory=lambda: ["ndcg", "recall"])
    """Metrics: ndcg, recall and mrr."""
    val_metric: str = "ndcg@10"
    """Metric that picks SASRec's epoch and the neighbours' parameters on validation."""
    eval_batch_size: int = 256
    """Users per batch in evaluation."""
    max_item_seq_len: int = 50
    """Items of history that are kept, the last ones."""

    d_model: int = 64
    """Width of the network."""
    num_layers: int = 2
    """Layers."""
    num_heads: int = 2
    """Attention heads."""
    dropout_rate: float = 0.3
    """Dropout."""
    lr: float = 0.001
    """Learning rate, constant."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    train_batch_size: int = 64
    """Users per batch; each has a target at every place of its history."""
    epochs: int = 200
    """Epochs at most."""
    eval_interval: int = 1
    """Evaluate every that many epochs."""
    patience: int = 10
    """Stop when the best epoch lies that many epochs back."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Precision of training: no (float32) or bf16. Evaluation is always float32."""

    @property
    def run_folder(self) -> Path:
        seeded = f"_seed{self.rand_seed}" if is_seeded(self.method, self.train_user_ratio) else ""
        return Path(self.ckpt_dir) / self.dataset / (self.run_name or f"{self.method}{seeded}")

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        found = super().problems()
        if self.num_heads >= 1 and self.d_model % self.num_heads:
            found.append(f"num_heads={self.num_heads} must divide d_model={self.d_model}")
        return found
