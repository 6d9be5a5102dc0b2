"""Write a dataset as RecBole's atomic files, so that its baselines run on the same splits.

    python -m data.recbole --dataset=Sample --output=recbole
    python -c "from recbole.quick_start import run_recbole as run; \\
        run('SASRec', 'Sample', config_file_list=['recbole/Sample/Sample.yaml'], saved=False)"

Writes <output>/<dataset>/<dataset>.inter (user_id, item_id, timestamp: the place in the user's sequence, from 0),
.item (item_id, text) and .yaml: leave-one-out in that order, ranking over all items, the last 20 items of history.
Names that would be read back differently, such as NA or with a quote, are renamed; renamed.json has them.
RecBole 1.2.1 ran so with numpy 1.26, pandas 2.3 and scipy 1.13, in an environment of its own.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count as count_from
from pathlib import Path

import numpy as np
import yaml

from data.interactions import dataset_folder, item_texts, load_interactions, making
from utils.claims import claim
from utils.config import parse_config
from utils.errors import InputError
from utils.files import atomic_folder, write_json
from utils.runtime import run_command


@dataclass
class RecBoleConfig:
    """Settings of the export."""

    dataset: str = "Musical_Instruments"
    """Name of the dataset's folder."""
    data_dir: str = "datasets/"
    """Folder that holds dataset folders."""
    output: str = "recbole"
    """Folder to write <dataset>/ into."""
    max_item_seq_len: int = 20
    """Items of history that the baselines keep, the last ones."""
    overwrite: bool = False
    """Replace a folder that is there."""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        return [] if self.max_item_seq_len > 0 else [f"max_item_seq_len={self.max_item_seq_len} must be at least 1"]


# RecBole's options for the splits and the evaluation of this project, and what pandas, its reader, takes for no value.
RECBOLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
NO_VALUE = set(RECBOLE["no_value"])


def safe_names(names: Sequence[str], kind: str) -> tuple[list[str], dict[str, str]]:
    """Return names that RecBole reads as they are written, and {new: old} of those that had to be changed."""
    taken, safe, renamed = set(names), [], {}
    for number, name in enumerate(names):
        if name in NO_VALUE or re.search(r'["\x00-\x1f\x7f]', name):
            new = next(new for new in (f"{kind}{'_' * count}{number}" for count in count_from(1)) if new not in taken)
            renamed[new] = name
            name = new
        safe.append(name)
    return safe, renamed


def main(argv: list[str] | None = None) -> None:
    """Write the atomic files; `argv` are the flags, by default the command line's.

    Raises:
        InputError: The folder is there already, or a user has fewer than 3 items, which RecBole splits otherwise.
    """
    config, _ = parse_config(RecBoleConfig, argv, "python -m data.recbole", __doc__)
    folder = dataset_folder(config.data_dir, config.dataset)
    interactions = load_interactions(folder)
    texts = item_texts(folder, interactions.item_names)
    lengths = np.diff(interactions.offsets)
    if lengths.min() < 3:
        short = interactions.user_names[int(lengths.argmin())]
        raise InputError(f"{folder}: {short!r} has {lengths.min()} items; RecBole's leave-one-out needs 3 of each user")
    target = Path(config.output) / config.dataset
    made_here = (target / f"{config.dataset}.yaml").is_file()
    protected = "" if made_here else "is there already and was not made by this command; name another --output"
    claim(target, overwrite=config.overwrite, protected=protected)
    users, renamed_users = safe_names(interactions.user_names, "user")
    items, renamed_items = safe_names(interactions.item_names, "item")
    with making(target), atomic_folder(target) as temporary:
        with open(temporary / f"{config.dataset}.inter", "w", encoding="utf-8") as file:
            file.write("user_id:token\titem_id:token\ttimestamp:float\n")
            for user, start, length in zip(users, interactions.offsets, lengths, strict=False):
                sequence = interactions.items[start : start + length]
                file.writelines(f"{user}\t{items[item]}\t{place}\n" for place, item in enumerate(sequence))
        with open(temporary / f"{config.dataset}.item", "w", encoding="utf-8") as file:
            file.write("item_id:token\ttext:token_seq\n")
            for name, text in zip(items[1:], texts, strict=True):
                words = " ".join(text.split()) + "." * (text.strip() in NO_VALUE)
                words = '"' + words.replace('"', '""') + '"' if '"' in words else words
                file.write(f"{name}\t{words}\n")
        own = {"data_path": str(Path(config.output).absolute()), "MAX_ITEM_LIST_LENGTH": config.max_item_seq_len}
        options = yaml.safe_dump(RECBOLE["options"] | own, sort_keys=False)
        (temporary / f"{config.dataset}.yaml").write_text(options, encoding="utf-8")
        if renamed_users or renamed_items:
            write_json(temporary / "renamed.json", {"users": renamed_users, "items": renamed_items})
            print(
                f"{target}: renamed, since RecBole would read them back differently: {len(renamed_users):,} users and "
                f"{len(renamed_items):,} items; renamed.json has their names"
            )
    counts = f"{len(users):,} users, {interactions.num_items:,} items, {len(interactions.items):,} interactions"
    print(f"{target}: {counts}")


if __name__ == "__main__":
    run_command(main)
