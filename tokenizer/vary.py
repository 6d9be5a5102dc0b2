"""Make related tokenizers out of one: neighbour identifiers, as far apart as asked.

    python -m tokenizer.vary --dataset=Musical_Instruments --drift=0.5 --num_tokenizers=25 \
        --sem_ids=datasets/Musical_Instruments/rqvae/sentence-t5-base_256,256,256,256_9988.sem_ids

Works on any semantic IDs, published ones too: codewords are taken to be the means of their items' embeddings. The same
as tokenizer.train and tokenizer.export with --kind=neighbours. Writes
<dataset>/<ckpt_name>/<encoder>_<sizes,...>_<number>.sem_ids, numbers 1 to num_tokenizers, quality.json and quality.txt.
The middle number is the given tokenizer: fine-tune with it.
"""

from dataclasses import dataclass

from tokenizer.config import TokenizerConfig
from tokenizer.export import export
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
    print(
        f"{config.tokenizer_folder}: {config.num_tokenizers} tokenizers; {1 + config.num_tokenizers // 2} is the given "
        f"tokenizer, the ends differ in {drift_of_ends(report)['any']:.1%} of the items"
    )


if __name__ == "__main__":
    run_command(main)
