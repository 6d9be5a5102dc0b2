"""Make the bundled sample: a small invented shop in the format of the published datasets.

    python -m data.sample
    python -m data.sample --dataset=Tiny --num_users=200 --num_items=80

Six hobbies of six categories each. A category's products differ in brand, series, material, size and price, and each
has a text of its own. A series runs through all categories of its hobby, and a brand sells two series at one price
tier. Shoppers have hobbies, favourite brands, a budget and a size; whatever they buy makes what goes with it more
likely: the next categories of the hobby, and above all in the same series. Everybody can return to a hobby and go on
where they left it, so more than the last item matters.

The bytes depend on the flags alone: every random number comes from one generator's uniform doubles.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from data.interactions import PADDING, making
from utils.claims import claim
from utils.config import parse_config
from utils.files import write_text
from utils.runtime import run_command

CATALOGUE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
NUM_BRANDS, SERIES_PER_BRAND, NUM_MATERIALS, NUM_SIZES, NUM_CATEGORIES = 4, 2, 3, 3, 6
NUM_SERIES = NUM_BRANDS * SERIES_PER_BRAND
NUM_HOBBIES = len(CATALOGUE)
MAX_ITEMS = NUM_HOBBIES * NUM_CATEGORIES * NUM_SERIES * NUM_MATERIALS * NUM_SIZES
ITEMS_PER_HOBBY = 40  # a smaller shop has fewer hobbies rather than thinner ones
PRICE_OF_TIER = (60, 90, 130, 200)  # percent of the category's price, by brand
SHORTEST, LONGEST, MEAN_EXTRA = 5, 40, 4.5  # interactions per user; the extra ones are exponential

# What makes a shopper buy: summands of the logarithm of an item's odds.
OTHER_HOBBY = -3.0  # a hobby that is neither the shopper's first (0) nor second (-2 to 0)
SAME_HOBBY = 1.0  # the hobby of the last item
COMPLEMENT = (-1.0, 2.0, 1.0, 0.0, 0.0, 0.0)  # categories 0, 1, ... further on than the hobby's last item
SAME_SERIES = 1.5  # the series of the hobby's last item
FAVOURITE_BRAND = 1.5  # times the shopper's loyalty, 0 to 1
PRICE_TIER = -0.4  # for each tier above or below the budget
SAME_SIZE = 0.6  # the shopper's size: small, middle, large
POPULARITY = 0.8  # exponent of Zipf's law


@dataclass
class SampleConfig:
    """Settings of the sample dataset."""

    data_dir: str = "datasets"
    """Folder that holds dataset folders."""
    dataset: str = "Sample"
    """Name of the dataset folder to write."""
    rand_seed: int = 2024
    """Seed of all random choices."""
    num_users: int = 3000
    """Users, at least as many as items so that each item is bought."""
    num_items: int = 600
    """Items."""
    overwrite: bool = False
    """Replace another dataset in that folder."""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        found = []
        if not ITEMS_PER_HOBBY <= self.num_items <= MAX_ITEMS:
            found.append(f"--num_items={self.num_items} is not between {ITEMS_PER_HOBBY} and {MAX_ITEMS}")
        if self.num_users < self.num_items:
            found.append(f"--num_users={self.num_users} is below --num_items={self.num_items}: items would go unbought")
        if self.rand_seed < 0:
            found.append(f"--rand_seed={self.rand_seed} is negative")
        if self.dataset != Path(self.dataset).name or self.dataset in ("", ".", ".."):
            found.append(f"--dataset={self.dataset} is not the name of a folder inside --data_dir")
        return found


class Category(NamedTuple):
    """What the products of a category have in common, and in what they can differ."""

    hobby: str
    series: list[tuple[str, str]]  # brand and name, cheapest brand first
    product: str
    price: int  # dollars
    materials: list[str]
    sizes: list[str]
    use: str


class Items(NamedTuple):
    """The shop's items in catalogue order, N of them; codes are 0-based int64."""

    hobby: np.ndarray  # [N]
    category: np.ndarray  # [N], number within the hobby
    series: np.ndarray  # [N], within the hobby
    tier: np.ndarray  # [N], price tier = brand within the hobby
    size: np.ndarray  # [N]
    texts: list[str]


# Draws uniform float64 numbers from [0, 1) in the given shape.
Uniform = Callable[..., np.ndarray]


def parse_catalogue() -> list[Category]:
    """Return all categories of CATALOGUE in order, hobby by hobby."""
    return [
        Category(hobby, [(brand, name) for brand, names in shop["brands"].items() for name in names], **category)
        for hobby, shop in CATALOGUE.items()
        for category in shop["categories"]
    ]


def describe(category: Category, series: int, material: int, size: int) -> str:
    """Return the text of one product: title, brand, hobby, use and price."""
    brand, line = category.series[series]
    percent = PRICE_OF_TIER[series // SERIES_PER_BRAND]
    dollars = category.price * percent * (100 + 15 * material) * (100 + 25 * size) // 10**6
    title = f"{brand} {line} {category.materials[material]} {category.product}, {category.sizes[size]}"
    return f"{title}. {brand}. {category.hobby}. {category.use}. ${dollars}.95."


def make_items(num_items: int, uniform: Uniform) -> Items:
    """Choose the shop's items by hobby and category: categories equally large, series equally frequent in each."""
    num_hobbies = min(NUM_HOBBIES, max(1, num_items // ITEMS_PER_HOBBY))
    num_categories = num_hobbies * NUM_CATEGORIES
    codes, texts = [], []
    for index, category in enumerate(parse_catalogue()[:num_categories]):
        count = num_items // num_categories + (index < num_items % num_categories)
        variants = uniform((NUM_SERIES, NUM_MATERIALS * NUM_SIZES)).argsort(axis=1)
        order = uniform(NUM_SERIES).argsort()
        # One variant of every series, then a second one of every series, and so on.
        chosen = [pair for column in variants[order].T for pair in zip(order, column, strict=True)]
        for series, variant in chosen[:count]:
            material, size = divmod(int(variant), NUM_SIZES)
            hobby, number = divmod(index, NUM_CATEGORIES)
            codes.append((hobby, number, int(series), int(series) // SERIES_PER_BRAND, size))
            texts.append(describe(category, int(series), material, size))
    return Items(*np.array(codes).T.copy(), texts)


def make_shoppers(items: Items, num_users: int, uniform: Uniform) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the U users.

    Returns:
        The item that each buys first, int64 [U], round the whole shop, so that every item is bought; how many each
        buys in all, int64 [U]; and each item's log odds for each user before anything is bought, float64 [U, N].
    """
    num_items, num_hobbies, users = len(items.texts), int(items.hobby.max()) + 1, np.arange(num_users)
    rounds = [uniform(num_items).argsort() for _ in range(-(-num_users // num_items))]
    first = np.concatenate(rounds)[:num_users]
    home, budget = items.hobby[first], items.tier[first]
    extra = np.floor(-MEAN_EXTRA * np.log1p(-uniform(num_users))).astype(np.int64)
    taste = np.full((num_users, num_hobbies), OTHER_HOBBY)
    if num_hobbies > 1:
        second = (home + 1 + np.floor(uniform(num_users) * (num_hobbies - 1)).astype(np.int64)) % num_hobbies
        taste[users, second] = -2 * uniform(num_users)
    taste[users, home] = 0.0
    favourite = np.floor(uniform((num_users, num_hobbies)) * NUM_BRANDS).astype(np.int64)  # tier in each hobby
    favourite[users, home] = budget
    loyalty, size = uniform(num_users), np.floor(uniform(num_users) * NUM_SIZES).astype(np.int64)
    ranks = uniform(num_items).argsort() + 1
    appeal = (
        taste[:, items.hobby]
        + FAVOURITE_BRAND * loyalty[:, None] * (favourite[:, items.hobby] == items.tier)
        + PRICE_TIER * np.abs(items.tier - budget[:, None])
        + SAME_SIZE * (items.size == size[:, None])
        - POPULARITY * np.log(ranks)
    )
    return first, np.minimum(SHORTEST + extra, LONGEST), appeal


def appeal_after(items: Items, last: np.ndarray, latest: np.ndarray) -> np.ndarray:
    """Return what past purchases add to each item's log odds, float64 [B, N].

    Args:
        items: The N items.
        last: Last item of each of B users, int64 [B].
        latest: Last item in each hobby, -1 where there is none, int64 [B, H].
    """
    before = latest[:, items.hobby]  # [B, N]
    steps = (items.category - items.category[before]) % NUM_CATEGORIES
    goes_with = np.array(COMPLEMENT)[steps] + SAME_SERIES * (items.series == items.series[before])
    return goes_with * (before >= 0) + SAME_HOBBY * (items.hobby == items.hobby[last][:, None])


def make_sequences(items: Items, num_users: int, uniform: Uniform) -> list[list[int]]:
    """Let every user shop, nobody buying an item twice; return each one's item indices in time order."""
    last, lengths, appeal = make_shoppers(items, num_users, uniform)
    latest, bought = np.full((num_users, items.hobby.max() + 1), -1), np.full((num_users, LONGEST), -1)
    active = np.arange(num_users)
    for step in range(LONGEST):
        bought[active, step] = last
        latest[active, items.hobby[last]] = last
        appeal[active, last] = -np.inf
        going_on = lengths[active] > step + 1
        active, last = active[going_on], last[going_on]
        scores = appeal[active] + appeal_after(items, last, latest[active])
        # The largest score plus Gumbel noise is a draw from the softmax of the scores.
        last = (scores - np.log(-np.log(uniform(scores.shape)))).argmax(axis=1)
    return [row[:length].tolist() for row, length in zip(bought, lengths, strict=True)]


def make_sample(rand_seed: int, num_users: int, num_items: int) -> dict[str, Any]:
    """Return file name -> JSON value, in the published format; ids from 1 in the order of first appearance."""
    uniform = np.random.Generator(np.random.PCG64(rand_seed)).random
    items = make_items(num_items, uniform)
    names = [f"I{index:04d}" for index in range(1, num_items + 1)]
    sequences = {
        f"U{index:05d}": [names[item] for item in sequence]
        for index, sequence in enumerate(make_sequences(items, num_users, uniform), start=1)
    }
    texts = dict(zip(names, items.texts, strict=True))
    by_id = {"user": [PADDING, *sequences], "item": [PADDING, *dict.fromkeys(chain(*sequences.values()))]}
    mapping: dict[str, Any] = {f"{kind}2id": {name: id for id, name in enumerate(by_id[kind])} for kind in by_id}
    return {
        "metadata.sentence.json": {item: texts[item] for item in by_id["item"][1:]},
        "all_item_seqs.json": sequences,
        "id_mapping.json": mapping | {f"id2{kind}": by_id[kind] for kind in by_id},
    }


def write_dataset(folder: Path, files: dict[str, Any], overwrite: bool) -> bool:
    """Write {file name: JSON value}, unless it is there already, and return whether anything was written.

    Raises:
        InputError: The folder holds another dataset, or files made from one.
    """
    texts = {name: json.dumps(value, indent=0, ensure_ascii=False) + "\n" for name, value in files.items()}
    present = {name for name in texts if (folder / name).exists()}
    differing = sorted(name for name in present if (folder / name).read_bytes() != texts[name].encode())
    derived = ", ".join(sorted(path.name for path in folder.glob("*") if path.name not in texts))
    refusal = (
        f"also holds {derived}, made from the dataset that is to be replaced; move or remove the folder, or choose "
        "another --dataset"
        if derived and overwrite
        else f"holds another dataset ({', '.join(differing)} would change); choose another --dataset, or replace it "
        "with --overwrite=true"
    )
    claim(folder, "finished" if differing else "nothing", overwrite=overwrite and not derived, refusal=refusal)
    for name in texts.keys() - (present - set(differing)):
        write_text(folder / name, texts[name])
    return bool(differing) or present != texts.keys()


def main(argv: list[str] | None = None) -> None:
    """Write the sample dataset's folder, or say that it is there."""
    config, _ = parse_config(SampleConfig, argv, "python -m data.sample", "Make the sample dataset.")
    folder = Path(config.data_dir) / config.dataset
    files = make_sample(config.rand_seed, config.num_users, config.num_items)
    with making(folder):
        written = write_dataset(folder, files, config.overwrite)
    interactions = sum(len(sequence) for sequence in files["all_item_seqs.json"].values())
    size = f"{config.num_users:,} users, {config.num_items:,} items, {interactions:,} interactions"
    print(f"{folder}: {size}" + ("" if written else "; reused, it was made before"))


if __name__ == "__main__":
    run_command(main)
