"""What every network has in common, and the table of networks."""

import errno
import pkgutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.beam_search import beam_search
from utils.errors import InputError
from utils.files import CHECKSUMS_FILE, check_checksums, read_json, write_checksums, write_json
from utils.prefix_trie import PrefixTrie

ARCHITECTURE_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class Architecture:
    """Kind and sizes of a network; the names are the command line's."""

    level_sizes: tuple[int, ...]  # codes per level of a semantic ID, disambiguation included
    n_user_tokens: int = 1
    num_layers: int = 3
    num_decoder_layers: int = 3
    d_model: int = 128
    d_ff: int = 512
    num_heads: int = 4
    d_kv: int = 64
    dropout_rate: float = 0.1
    feed_forward_proj: str = "relu"
    network: str = "t5"  # a name in NETWORKS

    @property
    def eos_token(self) -> int:
        """The last token: padding, the levels' codes and the user tokens come before it."""
        return sum(self.level_sizes) + 1 + self.n_user_tokens

    @property
    def vocab_size(self) -> int:
        return self.eos_token + 1

    def to_config(self) -> dict[str, Any]:
        """Return what config.json says: the fields, `network` as transformers calls it."""
        sizes = asdict(self) | {"level_sizes": list(self.level_sizes)}
        return {"model_type": sizes.pop("network"), **sizes}

    @classmethod
    def of_config(cls, config: Any, file: Path | str) -> "Architecture":
        """Read the fields back; raise InputError, which names `file`, where some are not there."""
        values = {}
        for field in fields(cls):
            name = "model_type" if field.name == "network" else field.name
            if not isinstance(config, dict) or name not in config:
                raise InputError(f"{file} has no {name}: it was not written by this project")
            values[field.name] = config[name]
        return cls(**values | {"level_sizes": tuple(values["level_sizes"])})


class Recommender(nn.Module):
    """A network from token sequences of histories to the target's semantic ID.

    Another network is a subclass with its own `logits` in a file of this folder, and a line in NETWORKS. It may also
    bring a faster `generate`, another loss (`forward`), or its own files (`write_network`, `load_pretrained`). Weights
    are drawn from torch's global generator.
    """

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        # of the semantic IDs that the weights were trained with (TokenTable.sha256); empty where unknown
        self.semantic_ids_sha256: list[str] = []

    def logits(self, input_ids: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits of every label position given the history and the labels before it: [B, L + 1, V].

        Args:
            input_ids: int64 [B, S], padded with 0 at the end.
            labels: int64 [B, L + 1], the target's tokens and eos.
            lengths: int64 [B], tokens of each row that are not padding.
        """
        raise NotImplementedError

    def forward(self, input_ids: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        """Return each example's loss, the mean negative log-likelihood of its label tokens: float32 [B].

        All examples have equally many label tokens, so the mean over examples is the loss of the batch.
        """
        logits = self.logits(input_ids, labels, lengths).float()
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return losses.view_as(labels).mean(dim=1)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        lengths: Tensor,
        num_beams: int,
        num_return: int,
        trie: PrefixTrie | None = None,
        banned: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Generate the most likely semantic IDs by `beam_search`, which says what goes in and out, in eval mode.

        This one runs `logits` for every beam at every step.
        """
        num_levels = len(self.architecture.level_sizes)

        def step(sequences: Tensor, ancestors: list[Tensor]) -> Tensor:
            num_rows, beams, level = sequences.shape
            labels = F.pad(sequences.flatten(0, 1), (0, num_levels + 1 - level))
            logits = self.logits(input_ids.repeat_interleave(beams, 0), labels, lengths.repeat_interleave(beams, 0))
            return logits[:, level].unflatten(0, (num_rows, beams))

        return beam_search(step, len(input_ids), num_levels, num_beams, num_return, input_ids.device, trie, banned)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write a folder that `load_recommender` reads, with a checksum of the weights."""
        try:
            self.write_network(Path(folder))
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error), str(folder)) from None
        write_checksums(Path(folder), [Path(folder) / WEIGHTS_FILE])

    def write_network(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        config = self.architecture.to_config() | {"semantic_ids_sha256": self.semantic_ids_sha256}
        write_json(folder / ARCHITECTURE_FILE, config)
        save_file(self.state_dict(), folder / WEIGHTS_FILE)

    @classmethod
    def from_config(cls, config: dict, file: Path) -> "Recommender":
        """Make the network, its weights fresh, that a config.json describes."""
        return cls(Architecture.of_config(config, file))

    def load_pretrained(self, folder: Path | str) -> None:
        """Copy the weights of a folder into the network; raise InputError if it has no whole model, or another one."""
        self.load_weights(read_weights(folder), str(folder))

    def load_weights(self, weights: dict[str, Tensor], origin: str) -> None:
        """Copy a state dict, which came from `origin`, into the network; raise InputError if names or shapes differ."""
        try:
            self.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(f"the weights of {origin} do not fit the model: {' '.join(str(error).split())}") from None


# The class of each --network, or "module:class", which is imported when it is first needed.
NETWORKS: dict[str, str | type[Recommender]] = {"t5": "model.t5:T5Recommender"}


def network_class(name: str) -> type[Recommender]:
    """Return the class of a network; raise InputError if it is not in the table."""
    if name not in NETWORKS:
        raise InputError(f"network={name} is not known here; there are {', '.join(NETWORKS)}")
    found = NETWORKS[name]
    return pkgutil.resolve_name(found) if isinstance(found, str) else found


def build_recommender(architecture: Architecture) -> Recommender:
    """Make a freshly initialised recommender (torch's global generator)."""
    return network_class(architecture.network)(architecture)


def load_recommender(path: Path | str, dropout_rate: float | None = None) -> Recommender:
    """Read what `save_pretrained` wrote, with another dropout rate if given; `path` as in `find_model_folder`."""
    file = find_model_folder(path) / ARCHITECTURE_FILE
    config = read_json(file)
    network = Architecture.of_config(config, file).network
    if dropout_rate is not None:
        config["dropout_rate"] = dropout_rate
    recommender = network_class(network).from_config(config, file)
    recommender.semantic_ids_sha256 = config.get("semantic_ids_sha256", [])
    recommender.load_pretrained(file.parent)
    return recommender


def read_architecture(path: Path | str) -> Architecture:
    """Read a model's architecture; `path` as in `find_model_folder`."""
    file = find_model_folder(path) / ARCHITECTURE_FILE
    return Architecture.of_config(read_json(file), file)


def find_model_folder(path: Path | str) -> Path:
    """Return the model folder that `path` is, or that lies in it as `model/`; raise InputError if there is neither."""
    for folder in (Path(path), Path(path) / "model"):
        if (folder / ARCHITECTURE_FILE).is_file():
            return folder
    raise InputError(f"{path} is neither a model folder (config.json, model.safetensors) nor a run folder with model/")


def weights_file(path: Path) -> Path:
    """Return the file of a model's weights: of a folder as in `find_model_folder`, or a reference checkpoint itself."""
    return path if path.is_file() else find_model_folder(path) / WEIGHTS_FILE


def read_weights(folder: Path | str) -> dict[str, Tensor]:
    """Read a model folder's weights; raise InputError if they are not whole, or not what was written."""
    try:
        weights = load_file(Path(folder) / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}/{WEIGHTS_FILE} is no whole file of weights: {error}") from None
    if (Path(folder) / CHECKSUMS_FILE).exists():  # not where another program wrote the folder
        check_checksums(Path(folder))
    return weights
