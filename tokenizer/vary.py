"""Make related tokenizers out of one: neighbour identifiers, as far apart as asked.

    python -m tokenizer.vary --dataset=Musical_Instruments --drift=0.5 --num_tokenizers=25 \
        --sem_ids=datasets/Musical_Instruments/rqvae/sentence-t5-base_256,256,256,256_9988.sem_ids

Works on any semantic IDs, published ones too: codewords are taken to be the means of their items' embeddings. Writes
<dataset>/<ckpt_name>/<encoder>_<sizes,...>_<number>.sem_ids, numbers 1 to num_tokenizers, quality.json and quality.txt.
The middle number is the given tokenizer: fine-tune with it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.interactions import dataset_folder, load_interactions
from data.token_table import read_sem_ids
from tokenizer.config import TokenizerConfig
from tokenizer.embed import load_embeddings
from tokenizer.export import write_tokenizers
from tokenizer.folder import sem_ids_prefix
from tokenizer.neighbours import estimated_codebooks, neighbour_codes
from tokenizer.quality import format_report, share_differing
from tokenizer.whitening import fit_whitening
from utils.claims import claim
from utils.config import parse_config
from utils.errors import InputError
from utils.locks import LOCK_FILE, FileLock
from utils.runtime import run_command


@dataclass
class VaryConfig(TokenizerConfig):
    """Settings; of the tokenizer's, those of embeddings, PCA, codebooks, folder and seed count."""

    ckpt_name: str = "neighbours"
    """folder under the dataset for the new semantic IDs"""
    sem_ids: str = ""
    """file of the semantic IDs to begin with"""
    num_tokenizers: int = 25
    """how many there will be, the given one in the middle"""
    drift: float = 0.5
    """share of the items in whose tokens the first and the last differ"""
    kept_levels: int = 1
    """levels, from the first on, whose codes stay"""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        found = super().problems()
        if not self.sem_ids:
            found.append("--sem_ids is needed")
        if not 0 <= self.kept_levels < self.n_codebooks:
            found.append(f"--kept_levels={self.kept_levels} must be in 0..{self.n_codebooks - 1}")
        return found


def vary(config: VaryConfig) -> dict[str, object]:
    """Write the related tokenizers and their quality report, and return the report.

    Raises:
        InputError: The semantic IDs do not fit the dataset, the drift cannot be had, or other ones are there already.
    """
    folder = dataset_folder(config.data_dir, config.dataset)
    names = load_interactions(folder).item_names[1:]
    codes = read_sem_ids(Path(config.sem_ids), names, config.level_sizes)[:, :-1].astype(np.int64)
    embeddings = load_embeddings(config, len(names))
    if config.has_pca:
        embeddings = fit_whitening(embeddings, config.sent_emb_pca, config.rand_seed).apply(embeddings)
    with FileLock(config.tokenizer_folder / LOCK_FILE):
        found = "finished" if any(config.tokenizer_folder.glob("*.sem_ids")) else "nothing"
        refusal = "holds semantic IDs already; name another folder with --ckpt_name, or replace them with --overwrite"
        claim(config.tokenizer_folder, found, overwrite=config.overwrite, refusal=refusal)
        codebooks = estimated_codebooks(embeddings, codes, config.codebook_sizes)
        settings = (config.num_tokenizers, config.drift, config.rand_seed, config.kept_levels)
        try:
            related = neighbour_codes(torch.from_numpy(embeddings), codebooks, codes, *settings)
        except ValueError as error:
            raise InputError(f"--drift={config.drift} cannot be had: {error}; lower it, or --kept_levels") from None
        for file in config.tokenizer_folder.glob("*.sem_ids"):
            file.unlink()
        report = write_tokenizers(config, names, enumerate(related, start=1))
    ends = share_differing(related[0], related[-1])
    middle = 1 + config.num_tokenizers // 2
    print(
        f"{config.tokenizer_folder}: {len(related)} files {sem_ids_prefix(config)}_<number>.sem_ids; {middle} is the "
        f"given tokenizer, the ends differ in {ends:.1%} of the items"
    )
    return report


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, vary and print the report."""
    config, _ = parse_config(VaryConfig, argv, "python -m tokenizer.vary", __doc__)
    print(format_report(vary(config)))


if __name__ == "__main__":
    run_command(main)
