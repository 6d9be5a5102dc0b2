"""The settings of evaluate.py."""

from dataclasses import dataclass, field

from evaluation.compare import RESAMPLES
from evaluation.metrics import METRICS
from utils.config import Epochs


def as_list(value: object) -> list:
    """Return a flag that takes one value or several as a list."""
    return value if isinstance(value, list) else [value]


@dataclass
class EvaluateConfig:
    """Settings of an evaluation; exactly one of model, ensemble and compare says what is done."""

    model: str | list[str] | None = None
    """Run folder, checkpoint in one, exported model folder, or <name>.winner.json; or a list of them."""
    ensemble: list[str] = field(default_factory=list)
    """Result files per user of the same users, to be joined into one ranking."""
    compare: list[str] = field(default_factory=list)
    """Two result files per user: is the second better than the first?"""
    output: str = "evaluation"
    """Folder for result files per user and evaluation.json."""

    data_dir: str | None = None
    """Folder that holds the dataset's folder; by default where the run had it."""
    token_prefix: str | list[str] | None = None
    """Prefix of the .sem_ids files, or a list; by default the run's."""
    sem_id_epochs: Epochs | None = None
    """RQ-VAE epochs of the tokenizers: 9986, [9986,9990], 9976:10000 (inclusive). By default the run's."""
    split: str = "test"
    """test or valid."""
    num_beams: int | list[int] = 50
    """Beams, or a list of numbers of beams."""
    constrained: bool | list[bool] = False
    """Generate real items only, by a prefix trie; [false,true] does both."""
    topk: list[int] = field(default_factory=lambda: [5, 10])
    """Cut-offs of the metrics."""
    batch_size: int = 128
    """Users per batch and process."""
    popularity_edges: list[int] = field(default_factory=lambda: [20, 40, 60, 80, 100])
    """Where the groups of the target's training interactions begin, after the group from 0 (as in the paper's Figure 5,
    whose text names the group below 20)."""
    length_edges: list[int] = field(default_factory=lambda: [5, 10, 20])
    """Where the groups of the history's length begin, after the group from 0."""
    resamples: int = RESAMPLES
    """Bootstrap samples of compare."""
    rand_seed: int = 2024
    """Seed of the bootstrap."""
    device: str = "auto"
    """auto (a GPU where there is one) or cpu."""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        found = []
        if sum(map(bool, (self.model, self.ensemble, self.compare))) != 1:
            found.append("say what to do with one of --model, --ensemble, --compare")
        if self.compare and len(self.compare) != 2:
            found.append(f"--compare takes two files, {len(self.compare)} are given")
        if self.ensemble and len(self.ensemble) < 2:
            found.append("--ensemble takes two files or more")
        if self.split not in ("test", "valid"):
            found.append(f"split={self.split} must be test or valid")
        if self.device not in ("auto", "cpu"):
            found.append(f"device={self.device} must be auto or cpu (CUDA_VISIBLE_DEVICES chooses among GPUs)")
        if not self.topk or min(self.topk) < 1:
            found.append(f"topk={self.topk} must be cut-offs from 1")
        elif self.model and max(self.topk) > min(as_list(self.num_beams), default=0):
            found.append(f"topk={self.topk} asks for more items than there are beams (num_beams={self.num_beams})")
        for name in ("popularity_edges", "length_edges"):
            edges = getattr(self, name)
            if edges != sorted(set(edges)) or min(edges, default=1) < 1:
                found.append(f"{name}={edges} must rise from 1")
        for name in ("batch_size", "resamples"):
            if getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)} must be at least 1")
        return found

    @property
    def cutoff(self) -> int:
        """The largest cut-off."""
        return max(self.topk)

    @property
    def metrics(self) -> list[str]:
        """Every metric at every cut-off, such as ndcg@5."""
        return [f"{metric}@{k}" for metric in METRICS for k in self.topk]
