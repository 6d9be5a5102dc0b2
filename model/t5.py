"""The default network, on Hugging Face's T5 weights: T5ForConditionalGeneration reads the folders that it writes."""

from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from model.beam_search import PAD_TOKEN, beam_search
from model.dropout import replace_dropout_
from model.recommender import Architecture, Recommender, read_weights
from model.t5_layers import IncrementalDecoder, decode, encode, project
from utils.errors import InputError
from utils.prefix_trie import PrefixTrie

disable_progress_bar()  # a bar of its own for each saved file


class T5Recommender(Recommender):
    """T5 encoder-decoder; its state dict's names are those of the reference code's checkpoints (t5.shared.weight, ...).

    `config` is T5's own form of the architecture, and may say more.
    """

    def __init__(self, architecture: Architecture, config: T5Config | None = None):
        super().__init__(architecture)
        self.t5 = T5ForConditionalGeneration(config or t5_config(architecture))
        replace_dropout_(self.t5)

    def logits(self, input_ids: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        encoded = encode(self.t5, input_ids, lengths)
        shifted = F.pad(labels[:, :-1], (1, 0), value=PAD_TOKEN)  # it is the start token too
        logits = project(self.t5, decode(self.t5, encoded, encoded.packing.sort(shifted)))
        return encoded.packing.unsort(logits)

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        lengths: Tensor,
        num_beams: int,
        num_return: int,
        trie: PrefixTrie | None = None,
        banned: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Generate the most likely semantic IDs; every history is encoded once, every step runs the newest token."""
        encoded = encode(self.t5, input_ids, lengths)
        packing, num_levels = encoded.packing, len(self.architecture.level_sizes)
        banned = None if banned is None else packing.sort(banned)
        step = IncrementalDecoder(self.t5, encoded).step
        found = beam_search(step, len(input_ids), num_levels, num_beams, num_return, input_ids.device, trie, banned)
        return packing.unsort(found[0]), packing.unsort(found[1])

    @classmethod
    def from_config(cls, config: dict, file: Path) -> "T5Recommender":
        """Make the network that a config.json describes, with whatever else it says of T5."""
        architecture = Architecture.of_config(config, file)
        try:
            return cls(architecture, T5Config.from_dict(config))
        except (StrictDataclassError, ValueError, TypeError) as error:
            raise InputError(f"{file} is no T5 configuration: {' '.join(str(error).split())}") from None

    def write_network(self, folder: Path) -> None:
        """Write config.json, generation_config.json and model.safetensors as transformers does."""
        self.t5.config.semantic_ids_sha256 = self.semantic_ids_sha256
        self.t5.save_pretrained(folder)

    def load_pretrained(self, folder: Path | str) -> None:
        """Copy the weights of a folder into the network."""
        weights = read_weights(folder)
        embeddings = self.t5.shared.weight.data_ptr()  # written once, under one name
        aliases = [name for name, value in self.t5.state_dict().items() if value.data_ptr() == embeddings]
        if "shared.weight" in weights:
            weights |= dict.fromkeys(aliases, weights["shared.weight"])
        self.load_weights({f"t5.{name}": value for name, value in weights.items()}, str(folder))


def t5_config(architecture: Architecture) -> T5Config:
    """Return the T5 configuration of an architecture, in which the vocabulary's layout travels too."""
    sizes = {name: value for name, value in architecture.to_config().items() if name != "model_type"}
    return T5Config(
        vocab_size=architecture.vocab_size,
        pad_token_id=PAD_TOKEN,
        decoder_start_token_id=PAD_TOKEN,
        eos_token_id=architecture.eos_token,
        tie_word_embeddings=True,
        **sizes,
    )
