"""Write docs/hyperparameters.md: each flag with default and meaning from the dataclasses, advice from the .yaml.

python -m docs.hyperparameters
"""

from dataclasses import fields
from pathlib import Path

import yaml

from tokenizer.config import TokenizerConfig
from training.config import FinetuneConfig, PretrainConfig, TrainingConfig
from utils.config import make_parser
from utils.files import write_text

FILE = Path(__file__).with_suffix(".md")
ADVICE = yaml.safe_load(FILE.with_suffix(".yaml").read_text(encoding="utf-8"))
NOTES, TOKENIZER_NOTES = ADVICE["training"], ADVICE["tokenizer"]


def typed(default: object) -> str:
    """Return a flag's default as it is typed on the command line."""
    if default is None or default == "":
        return "null" if default is None else "empty"
    return str(default).lower() if isinstance(default, bool) else str(default).replace(" ", "")


def rows(config_class: type, names: list[str]) -> list[str]:
    """Return the table of some flags of a dataclass."""
    flags = {action.dest: action for action in make_parser(config_class, "", "")._actions}
    lines = ["| flag | default | range | paper | meaning | too low, too high |", "|---|---|---|---|---|---|"]
    notes = NOTES | (TOKENIZER_NOTES if config_class is TokenizerConfig else {})
    for name in names:
        default = "required" if flags[name].required else typed(flags[name].default)
        meaning = " ".join(flags[name].help.split()).replace("|", "\\|").replace("<", "&lt;")
        note = {"paper": "default", "effect": ""} | notes[name]
        cells = [f"`{name}`", f"`{default}`", note["range"], note["paper"], meaning, note["effect"]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def generate() -> str:
    """Return the page."""
    everywhere, of_tokenizer, of_pretraining, of_finetuning = (
        [field.name for field in fields(config_class)]
        for config_class in (TrainingConfig, TokenizerConfig, PretrainConfig, FinetuneConfig)
    )
    parts = ["# Hyperparameters", "", ADVICE["introduction"].rstrip()]
    for title, config_class, names in (
        ("Tokenizer (`tokenizer/run.sh`)", TokenizerConfig, of_tokenizer),
        ("Pre-training and fine-tuning (`pretrain.sh`, `finetune.sh`)", TrainingConfig, everywhere),
        ("Pre-training only", PretrainConfig, [name for name in of_pretraining if name not in everywhere]),
        ("Fine-tuning only", FinetuneConfig, [name for name in of_finetuning if name not in everywhere]),
    ):
        parts += ["", f"## {title}", "", *rows(config_class, names)]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    write_text(FILE, generate())
    print(FILE)
