"""The generative recommender, on Hugging Face's T5 weights."""

import errno
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from model.dropout import replace_dropout_
from model.t5 import decode, encode, project
from utils.errors import InputError
from utils.files import CHECKSUMS_FILE, check_checksums, write_checksums

WEIGHTS_FILE = "model.safetensors"

disable_progress_bar()  # a bar of its own for each saved file


@dataclass(frozen=True)
class Architecture:
    """Sizes of the network; the names are the command line's.

    Attributes:
        level_sizes: Codes per level of a semantic ID, disambiguation included.
        n_user_tokens: User tokens in the vocabulary.
    """

    level_sizes: tuple[int, ...]
    n_user_tokens: int = 1
    num_layers: int = 3
    num_decoder_layers: int = 3
    d_model: int = 128
    d_ff: int = 512
    num_heads: int = 4
    d_kv: int = 64
    dropout_rate: float = 0.1
    feed_forward_proj: str = "relu"

    def to_t5_config(self) -> T5Config:
        """Return the T5 configuration; the vocabulary's layout travels in it as `level_sizes` and `n_user_tokens`."""
        eos_token = sum(self.level_sizes) + 1 + self.n_user_tokens
        sizes = asdict(self) | {"level_sizes": list(self.level_sizes)}
        return T5Config(
            vocab_size=eos_token + 1,
            pad_token_id=0,
            decoder_start_token_id=0,
            eos_token_id=eos_token,
            tie_word_embeddings=True,
            **sizes,
        )

    @classmethod
    def of_t5_config(cls, config: T5Config) -> "Architecture":
        """Read the sizes back from a T5 configuration that `to_t5_config` made."""
        if not hasattr(config, "level_sizes"):
            raise InputError("the model's config.json has no level_sizes: it was not written by this project")
        sizes = {field.name: getattr(config, field.name) for field in fields(cls)}
        return cls(**sizes | {"level_sizes": tuple(config.level_sizes)})


class Recommender(nn.Module):
    """T5 encoder-decoder from token sequences of histories to the target's semantic ID.

    The state dict's names are those of the reference code's checkpoints (t5.shared.weight, ...).

    Args:
        t5: The network and its weights.
    """

    def __init__(self, t5: T5ForConditionalGeneration):
        super().__init__()
        replace_dropout_(t5)
        self.t5 = t5

    @classmethod
    def from_architecture(cls, architecture: Architecture) -> "Recommender":
        """Make a freshly initialised recommender (torch's global generator)."""
        return cls(T5ForConditionalGeneration(architecture.to_t5_config()))

    @property
    def architecture(self) -> Architecture:
        return Architecture.of_t5_config(self.t5.config)

    def forward(self, input_ids: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        """Return each example's loss: the mean negative log-likelihood of its label tokens.

        All examples have equally many label tokens, so the mean over examples is T5's loss of the batch.

        Args:
            input_ids: int64 [B, S], padded at the end.
            labels: int64 [B, L + 1], the target's tokens and eos.
            lengths: int64 [B], tokens of each row that are not padding; on the CPU where rows are grouped (model.t5).

        Returns:
            float32 [B].
        """
        logits = self.logits(input_ids, labels, lengths).float()
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return losses.view_as(labels).mean(dim=1)

    def logits(self, input_ids: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits of every label position given the ones before it: [B, L + 1, V]."""
        encoded = encode(self.t5, input_ids, lengths)
        shifted = F.pad(labels[:, :-1], (1, 0), value=self.t5.config.decoder_start_token_id)
        logits = project(self.t5, decode(self.t5, encoded, encoded.groups.sort(shifted)))
        return encoded.groups.unsort(logits)

    @property
    def identifiers(self) -> list[str]:
        """Hashes of the semantic IDs that the weights were trained with (TokenTable.sha256); empty where unknown."""
        return list(getattr(self.t5.config, "semantic_ids_sha256", []))

    @identifiers.setter
    def identifiers(self, hashes: list[str]) -> None:
        self.t5.config.semantic_ids_sha256 = list(hashes)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write a folder that T5ForConditionalGeneration.from_pretrained reads, with a checksum of the weights.

        Raises:
            OSError: The disk is full or fails.
        """
        try:
            self.t5.save_pretrained(folder)
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error), str(folder)) from None
        write_checksums(Path(folder), [Path(folder) / WEIGHTS_FILE])

    def load_weights(self, weights: dict[str, Tensor], source: str) -> None:
        """Copy a state dict into the network.

        Raises:
            InputError: Names or shapes differ; `source` says where the weights came from.
        """
        try:
            self.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(f"the weights of {source} do not fit the model: {' '.join(str(error).split())}") from None

    @classmethod
    def from_pretrained(cls, folder: Path | str, dropout_rate: float | None = None) -> "Recommender":
        """Read a folder that `save_pretrained` wrote, with another dropout rate where one is given.

        Raises:
            InputError: The folder holds no whole model.
        """
        config = read_model_config(folder)
        if dropout_rate is not None:
            config.dropout_rate = dropout_rate
        recommender = cls(T5ForConditionalGeneration(config))
        try:
            weights = load_file(Path(folder) / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{folder}/{WEIGHTS_FILE} is no whole file of weights: {error}") from None
        if (Path(folder) / CHECKSUMS_FILE).exists():  # not where another program wrote the folder
            check_checksums(Path(folder))
        embeddings = recommender.t5.shared.weight.data_ptr()  # written once, under one name
        aliases = [name for name, value in recommender.t5.state_dict().items() if value.data_ptr() == embeddings]
        if "shared.weight" in weights:
            weights |= dict.fromkeys(aliases, weights["shared.weight"])
        recommender.load_weights({f"t5.{name}": value for name, value in weights.items()}, str(folder))
        return recommender


def find_model_folder(path: Path | str) -> Path:
    """Return the model folder that `path` is, or that lies in it as `model/` if it is a run folder.

    Raises:
        InputError: Nothing of the kind is there.
    """
    for folder in (Path(path), Path(path) / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise InputError(f"{path} is neither a model folder (config.json, model.safetensors) nor a run folder with model/")


def read_model_config(folder: Path | str) -> T5Config:
    """Read a model folder's config.json.

    Raises:
        InputError: It is broken.
    """
    try:
        return T5Config.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder}/config.json is no T5 configuration: {' '.join(str(error).split())}") from None


def read_reference_checkpoint(file: Path | str) -> dict[str, Tensor]:
    """Read the weights of a reference-code checkpoint ({model, optimizer, scheduler}), never arbitrary pickle.

    Raises:
        InputError: The file is not such a checkpoint.
    """
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for broken or malicious files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{file} is not a readable checkpoint of tensors: {reason}") from None
    weights = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or "t5.shared.weight" not in weights:
        raise InputError(f"{file} has no weights under model/t5.shared.weight")
    return weights


def sizes_of_weights(weights: dict[str, Tensor]) -> dict[str, int]:
    """Read the architecture's sizes off a state dict: the flags that its shapes fix, and vocab_size."""

    def layers(stack: str) -> int:
        return len({name.split(".")[3] for name in weights if name.startswith(f"t5.{stack}.block.")})

    vocab_size, d_model = weights["t5.shared.weight"].shape
    attention = "t5.encoder.block.0.layer.0.SelfAttention"
    num_heads = weights[f"{attention}.relative_attention_bias.weight"].shape[1]
    feed_forward = "t5.encoder.block.0.layer.1.DenseReluDense"
    d_ff = weights[f"{feed_forward}.wo.weight"].shape[1]
    return {
        "vocab_size": vocab_size,
        "num_layers": layers("encoder"),
        "num_decoder_layers": layers("decoder"),
        "d_model": d_model,
        "d_ff": d_ff,
        "num_heads": num_heads,
        "d_kv": weights[f"{attention}.q.weight"].shape[0] // num_heads,
    }
