"""The kinds of tokenizers: the table in which `--kind` looks them up."""

from tokenizer.fixed_codebooks import Neighbours, RQKMeans
from tokenizer.kind import Tokenizer
from tokenizer.letter import Letter
from tokenizer.rqvae_training import RQVAETokenizer

KINDS: dict[str, type[Tokenizer]] = {
    "rqvae": RQVAETokenizer,
    "rqkmeans": RQKMeans,
    "neighbours": Neighbours,
    "letter": Letter,
}
