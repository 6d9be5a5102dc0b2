"""Make related tokenizers out of one: neighbour identifiers, as far apart as asked.

    python -m tokenizer.vary --dataset=Musical_Instruments --drift=0.5 --num_tokenizers=25 \
        --sem_ids=datasets/Musical_Instruments/rqvae/sentence-t5-base_256,256,256,256_9988.sem_ids

Works on any semantic IDs, published ones too: codewords are taken to be the means of their items' embeddings. The same
as tokenizer.train and tokenizer.export with --kind=neighbours. Writes
<dataset>/<ckpt_name>/<encoder>_<sizes,...>_<number>.sem_ids, numbers 1 to num_tokenizers, quality.json and quality.txt.
The middle number is the given tokenizer: fine-tune with it. (If its last level does not count items of the same
codes 1, 2, 3, it is counted anew; the command says so.)
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.interactions import load_interactions
from data.token_table import read_sem_ids
from tokenizer.config import TokenizerConfig
from tokenizer.export import export
from tokenizer.folder import sem_ids_file
from tokenizer.quality import drift_of_ends, format_report
from tokenizer.train import train
from utils.config import parse_config
from utils.runtime import run_command


@dataclass
class VaryConfig(TokenizerConfig):
    """The flags of tokenizer.train with the defaults of this command."""

    kind: str = "neighbours"
    ckpt_name: str = "neighbours"
    drift: float | None = 0.5

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        return super().problems() + (["--drift is needed"] if self.drift is None else [])


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, vary and print the report."""
    config, _ = parse_config(VaryConfig, argv, "python -m tokenizer.vary", __doc__)
    train(config)
    report = export(config)
    if not report:  # the folder has semantic IDs that were not made here
        return
    print(format_report(report))
    number, names = 1 + config.num_tokenizers // 2, load_interactions(config.folder).item_names[1:]
    files = (Path(config.sem_ids), sem_ids_file(config, number))
    given, middle = (read_sem_ids(file, names, config.level_sizes) for file in files)
    anew = "" if np.array_equal(given, middle) else ", its last level counted anew"
    print(
        f"{config.tokenizer_folder}: {config.num_tokenizers} tokenizers; {number} is the given tokenizer{anew}, "
        f"the ends differ in {drift_of_ends(report)['any']:.1%} of the items"
    )


if __name__ == "__main__":
    run_command(main)
