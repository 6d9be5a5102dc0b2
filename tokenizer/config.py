"""The settings that embed, train and export share, and where their files lie."""

from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Literal

from data.token_table import level_sizes
from tokenizer.sinkhorn import Sinkhorn
from tokenizer.window import evenly_spaced, strides


@dataclass
class TokenizerConfig:
    """Settings of the whole way from item texts to semantic IDs; the three commands take the same flags."""

    dataset: str
    """name of the dataset's folder in data_dir"""
    data_dir: str = "datasets/"
    """folder that holds dataset folders"""
    ckpt_name: str = "rqvae"
    """folder under the dataset that holds this tokenizer: checkpoints, PCA and .sem_ids"""
    rand_seed: int = 2024
    """the same seed gives the same semantic IDs on the same machine"""
    reproducibility: bool = True
    """choose deterministic kernels"""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:1"""
    overwrite: bool = False
    """replace embeddings or a tokenizer that were made with other settings; without it they are refused"""

    resume: bool = False
    """go on with an unfinished training, exactly where it was; without one, start anew"""
    checkpoint_minutes: float = 10.0
    """minutes between two saved states for --resume; 0 saves after every epoch"""

    sent_emb_model: str = "sentence-transformers/sentence-t5-base"
    """text encoder: a sentence-transformers name or local folder, or tfidf (built in, no download); the last part
    of its path names the embedding file"""
    sent_emb_batch_size: int = 512
    """texts per batch of the text encoder"""
    sent_emb_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """precision that the text encoder computes in; the file is float32"""
    sent_emb_prompt: str | None = None
    """put before every text, for encoders that want it, such as "passage: "; by default the encoder's own default
    prompt, if it has one; given with nothing, none"""
    sent_emb_max_length: int | None = None
    """tokens of a text that are read; by default the encoder's own limit"""
    sent_emb_trust_remote_code: bool = False
    """run code that comes with the encoder, for encoders that need their own"""
    sent_emb_dim: int = 768
    """dimensions of the text embeddings"""
    sent_emb_pca: int = 128
    """dimensions after PCA with whitening, fitted on all items; -1 trains on the embeddings as they are"""

    kind: str = "rqvae"
    """how semantic IDs are learnt: a name in tokenizer/kinds.py"""
    n_codebooks: int = 3
    """levels of a semantic ID without the disambiguation level"""
    codebook_size: int | list[int] = 256
    """codes per level: one number, or a list of n_codebooks (the disambiguation level takes the last one's) or
    of n_codebooks + 1"""
    hidden_sizes: list[int] = field(default_factory=lambda: [2048, 1024, 512, 256, 128])
    """layer sizes of the encoder without the input's; the last is the codebooks' dimension, the decoder mirrors them"""
    dropout: float = 0.0
    """dropout before each linear layer"""
    beta: float = 0.25
    """weight of the commitment term"""
    vq_type: Literal["ema", "vq"] = "ema"
    """codebooks that follow a moving average (ema) or a gradient (vq, as TIGER)"""

    revive_codes: int = 0
    """for rqvae and letter: a code that no item has used for so many steps takes the place of an item of the batch;
    0 leaves codes alone"""
    balance: Literal["none", "sinkhorn"] = "none"
    """sinkhorn: items share out the codes of the last level, in training those of a batch, at the export those that
    collide; new items get the nearest code"""
    sinkhorn_epsilon: float = 0.003
    """weight of the entropy, for distances in [-1, 1]; the lower, the fewer codes an item is spread over"""
    sinkhorn_iterations: int = 50
    """iterations of Sinkhorn's algorithm"""
    cf_emb: str = "svd"
    """for letter: the items' collaborative embeddings: svd (made of the training part of the interactions), or a file,
    .npy or raw float32, row i = item id i + 1, of as many dimensions as the codebooks; tokenizer/run.sh also knows
    sasrec, and trains one"""
    cf_weight: float = 0.02
    """for letter: weight of the alignment with the collaborative embeddings"""
    diversity_weight: float = 0.0001
    """for letter: weight of the codebooks' diversity loss"""

    lr: float = 0.001
    """learning rate"""
    learner: Literal["adagrad", "adamw"] = "adagrad"
    """optimizer"""
    scheduler_type: Literal["constant", "linear"] = "constant"
    """learning rate after the warm-up: constant, or falling linearly to 0"""
    weight_decay: float = 0.0
    """weight decay"""
    warmup_steps: int = 0
    """epochs (not steps) over which the learning rate rises from 0"""
    batch_size: int = 2048
    """items per training step; the last, smaller batch is kept"""
    steps_per_epoch: int | None = None
    """training steps of an epoch, with equally many items in each, at most batch_size of them (else there are more
    steps); by default as many as batches of batch_size need"""
    epochs: int = 10000
    """epochs of RQ-VAE training"""
    mixed_precision: Literal["no", "bf16"] = "no"
    """precision of the encoder and the decoder in training: no (float32) or bf16; quantisation is always float32"""
    save_last: int = 51
    """how many of the last epochs are kept, each one a tokenizer; not used with drift"""
    drift: float | None = None
    """choose num_tokenizers of the epochs of the last half, evenly spaced and the last one among them, so that the
    first and the last differ in about this share of the items; by default the save_last last epochs are taken"""
    num_tokenizers: int = 25
    """how many epochs are chosen with drift"""
    kept_levels: int = 1
    """for kinds whose codebooks are not trained: levels, from the first on, whose codes all tokenizers share"""
    sem_ids: str = ""
    """for the kind neighbours: file of the semantic IDs that become the middle tokenizer"""

    @property
    def folder(self) -> Path:
        """The dataset's folder."""
        return Path(self.data_dir) / self.dataset

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of this tokenizer's checkpoints, PCA and .sem_ids."""
        return self.folder / self.ckpt_name

    @property
    def encoder_name(self) -> str:
        """Name of the text encoder in file names."""
        return Path(self.sent_emb_model).name

    @property
    def embedding_file(self) -> Path:
        """Raw little-endian float32, row i = item id i + 1."""
        return self.folder / f"{self.encoder_name}.sent_emb"

    @property
    def has_pca(self) -> bool:
        return self.sent_emb_pca != -1

    @property
    def input_size(self) -> int:
        """Dimensions that are quantised."""
        return self.sent_emb_pca if self.has_pca else self.sent_emb_dim

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes of each level, disambiguation included."""
        return level_sizes(self.n_codebooks, self.codebook_size)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each level but the disambiguation's."""
        return self.level_sizes[:-1]

    @property
    def sinkhorn(self) -> Sinkhorn | None:
        """The assignment at the last level, if balance asks for it."""
        return Sinkhorn(self.sinkhorn_epsilon, self.sinkhorn_iterations) if self.balance == "sinkhorn" else None

    @property
    def kept_epochs(self) -> list[int]:
        """The epochs whose weights training keeps (section 2.2.2, equations 4-5), 1-based; --drift chooses."""
        if self.drift is None:
            return evenly_spaced(self.epochs, self.save_last, 1)
        last, count = self.epochs, self.num_tokenizers
        return sorted({epoch for stride in strides(last, count) for epoch in evenly_spaced(last, count, stride)})

    def problems(self) -> list[str]:
        """Return one sentence for each setting that is out of range or contradicts another."""
        from tokenizer.kinds import KINDS  # the kinds need the settings

        at_least_1 = ("sent_emb_batch_size", "sent_emb_dim", "n_codebooks", "batch_size", "epochs", "save_last")
        at_least_1 += ("sinkhorn_iterations",)
        not_negative = ("beta", "weight_decay", "checkpoint_minutes", "revive_codes", "cf_weight", "diversity_weight")
        folders = ("dataset", "ckpt_name")
        pca, dim, length, levels = self.sent_emb_pca, self.sent_emb_dim, self.sent_emb_max_length, self.n_codebooks
        listed, kind = isinstance(self.codebook_size, list), KINDS.get(self.kind)
        sizes = self.codebook_size if listed else [self.codebook_size]
        count = f"has {len(sizes)} entries, --n_codebooks={levels} takes {levels} or {levels + 1}"
        of_other_kinds = {name for other in KINDS.values() for name in other.flags} - {*kind.flags} if kind else set()
        fits = self.drift is None or self.num_tokenizers <= self.epochs or (kind and "epochs" in kind.unused)
        default = TokenizerConfig(dataset="")
        foreign = [name for name in sorted(of_other_kinds) if getattr(self, name) != getattr(default, name)]
        rules = [  # (flag, whether its value is right, else what to say of it)
            *((name, getattr(self, name) >= 1, "must be at least 1") for name in at_least_1),
            ("kind", self.kind in KINDS, f"is no kind of tokenizer; there are: {', '.join(KINDS)}"),
            ("hidden_sizes", min(self.hidden_sizes, default=0) >= 1, "must list at least one size, each at least 1"),
            ("sent_emb_pca", not self.has_pca or 1 <= pca <= dim, f"must be -1 (none) or 1..sent_emb_dim={dim}"),
            ("lr", 0 < self.lr < inf, "must be above 0"),
            ("dropout", 0 <= self.dropout < 1, "must be in [0, 1)"),
            ("rand_seed", 0 <= self.rand_seed < 2**32, "must be at least 0 and below 2**32"),
            *((name, 0 <= getattr(self, name) < inf, "must not be negative") for name in not_negative),
            ("warmup_steps", 0 <= self.warmup_steps <= self.epochs, f"(epochs) must be in 0..epochs={self.epochs}"),
            *((name, _is_name(getattr(self, name)), "must be the name of a folder, not a path") for name in folders),
            ("sent_emb_max_length", length is None or length >= 1, "must be at least 1"),
            ("steps_per_epoch", self.steps_per_epoch is None or self.steps_per_epoch >= 1, "must be at least 1"),
            ("drift", self.drift is None or 0 <= self.drift < 1, "must be at least 0 and below 1"),
            ("num_tokenizers", self.num_tokenizers >= 2, "must be at least 2"),
            ("num_tokenizers", fits, f"are more than there are epochs, --epochs={self.epochs}"),
            *((name, False, f"is nothing for --kind={self.kind}") for name in foreign),
            ("sinkhorn_epsilon", 0.003 <= self.sinkhorn_epsilon < inf, "must be at least 0.003"),
            ("codebook_size", not listed or len(sizes) in (levels, levels + 1), count),
            ("codebook_size", all(size >= 2 for size in sizes), "must be at least 2"),
        ]
        found = [f"--{name}={getattr(self, name)} {complaint}" for name, right, complaint in rules if not right]
        if self.overwrite and self.resume:
            found.append("--overwrite starts anew and --resume goes on; give one of them")
        if not self.encoder_name:
            found.append("--sent_emb_model is empty")
        return found + (kind.problems(self) if kind else [])


def _is_name(value: str) -> bool:
    return value == Path(value).name and value not in ("", "..")
