"""Write a complete model folder, which recommends on another machine without the dataset.

    python export.py --run=ckpt/Sample/mtgrec_best_104 --output=exported
    python export.py --run=exported --push_to_hub=ann/shop           then anywhere: --model=hf:ann/shop

It holds the weights (plain T5ForConditionalGeneration.from_pretrained reads them), every item's semantic ID and text,
the vocabulary layout, the training settings, metrics and hashes, and a model card, README.md, which you may edit.
Fine-tuning leaves such a folder in <run>/model.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from inference.model_card import name_on_hub
from inference.model_folder import ABOUT_FILE, export_model
from utils import hub
from utils.claims import claim
from utils.config import parse_config
from utils.runtime import run_command


@dataclass
class ExportConfig:
    """Settings of the export."""

    run: str = ""
    """Run folder, a checkpoint in it, a <name>.winner.json, an exported folder, or hf:user/name; the tokenizer is the
    run's best on validation."""
    output: str = ""
    """Folder to write; needed unless push_to_hub is given."""
    data_dir: str | None = None
    """Folder that holds the dataset's folder; by default where the run had it."""
    overwrite: bool = False
    """Replace an exported folder that is there."""
    push_to_hub: str = ""
    """user/name on a model hub to push the folder to, card and all; `hf auth login` or HF_TOKEN says who you are."""
    private: bool = True
    """Make a new repository on the hub that only you see; --private=false: everybody."""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        found = [] if self.run else ["--run is needed"]
        found += [] if self.output or self.push_to_hub else ["--output is needed, or --push_to_hub"]
        if self.push_to_hub and not re.fullmatch(hub.NAME, self.push_to_hub):
            found.append(f"push_to_hub={self.push_to_hub} must be user/name, of letters, digits, -, _ and .")
        return found


def main(argv: list[str] | None = None) -> None:
    """Export; `argv` are the flags, by default the command line's."""
    config, _ = parse_config(ExportConfig, argv, "export.py", __doc__)
    with tempfile.TemporaryDirectory() as passing:
        output = Path(config.output or f"{passing}/model")
        made_here = (output / ABOUT_FILE).is_file()
        protected = "" if made_here else "is there already and is no exported model; name another --output"
        claim(output, overwrite=config.overwrite, protected=protected)
        model = export_model(config.run, output, config.data_dir)
        group = model.catalogue.table.groups[0]
        said = f"{model.catalogue.num_items:,} items, tokenizer {group.prefix}, epoch {group.epoch or 'best'}"
        print(f"{config.output or config.run}: {said}")
        if config.push_to_hub:
            name_on_hub(output, config.push_to_hub)
            commit = hub.push(output, config.push_to_hub, config.private)
            print(f"{commit}: pushed; --model={hub.PREFIX}{config.push_to_hub} takes it")


if __name__ == "__main__":
    run_command(main)
