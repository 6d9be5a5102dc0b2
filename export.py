"""Write a complete model folder, which recommends on another machine without the dataset.

    python export.py --run=ckpt/Sample/mtgrec_best_104 --output=exported

It holds the weights (plain T5ForConditionalGeneration.from_pretrained reads them), every item's semantic ID and text,
the vocabulary layout, the training settings, metrics and hashes. Fine-tuning leaves such a folder in <run>/model.
"""

from dataclasses import dataclass
from pathlib import Path

from inference.model_folder import ABOUT_FILE, export_model
from utils.claims import claim
from utils.config import parse_config
from utils.runtime import run_command


@dataclass
class ExportConfig:
    """Settings of the export."""

    run: str = ""
    """Run folder, a checkpoint in it, or a <name>.winner.json; the tokenizer is the run's best on validation."""
    output: str = ""
    """Folder to write."""
    data_dir: str | None = None
    """Folder that holds the dataset's folder; by default where the run had it."""
    overwrite: bool = False
    """Replace an exported folder that is there."""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        return [f"--{name} is needed" for name in ("run", "output") if not getattr(self, name)]


def main(argv: list[str] | None = None) -> None:
    """Export; `argv` are the flags, by default the command line's."""
    config, _ = parse_config(ExportConfig, argv, "export.py", __doc__)
    output = Path(config.output)
    made_here = (output / ABOUT_FILE).is_file()
    protected = "" if made_here else "is there already and is no exported model; name another --output"
    claim(output, overwrite=config.overwrite, protected=protected)
    model = export_model(config.run, output, config.data_dir)
    group = model.catalogue.table.groups[0]
    print(f"{output}: {model.catalogue.num_items:,} items, tokenizer {group.prefix}, epoch {group.epoch or 'best'}")


if __name__ == "__main__":
    run_command(main)
