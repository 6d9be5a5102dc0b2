"""The README.md of a prepared dataset: how large it is, how it was made, and what was dropped."""

import shlex
from pathlib import Path

from utils.cards import CARD_FILE, render_card
from utils.errors import InputError
from utils.files import read_json

STATS_FILE = "stats.json"
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
LARGER = "n>10M"


def dataset_card(stats: dict) -> str:
    """Return the card of a dataset; `stats` is what its stats.json holds."""
    settings, numbers = stats["settings"], stats["dataset"]
    sources = {name: as_list(settings[name]) for name in ("interactions", "items")}
    values = settings | {name: ",".join(one["file"] for one in files) for name, files in sources.items()}
    given = {name: value for name, value in values.items() if value is not False and value not in ("", None)}
    size = next((name for limit, name in SIZES.items() if numbers["interactions"] < limit), LARGER)
    return render_card(
        Path(__file__).with_suffix(".md"),
        {
            "pretty_name": settings["dataset"],
            "tags": ["recommender-system", "sequential-recommendation", "mtgrec"],
            "size_categories": [size],
            "viewer": False,  # a hub would show each user as a column
        },
        numbers=numbers,
        settings=settings,
        stats=stats,
        sources=sources,
        command=shlex.join(["python", "-m", "data.prepare", *(f"--{name}={value}" for name, value in given.items())]),
    )


def as_list(files: dict | list[dict]) -> list[dict]:
    """Return the files {"file", "sha256"} of one kind, which stats.json keeps as one alone or as a list."""
    return files if isinstance(files, list) else [files]


def has_own_card(folder: Path) -> bool:
    """Return whether a dataset's folder has a README.md that is not as it was made here, so the user's own."""
    file = folder / CARD_FILE
    if not file.is_file():
        return False
    try:
        return file.read_bytes() != dataset_card(read_json(folder / STATS_FILE)).encode()
    except (InputError, KeyError, TypeError):  # no statistics, or broken ones
        return True
