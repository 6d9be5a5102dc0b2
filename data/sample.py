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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.interactions import making
from utils.claims import claim
from utils.config import parse_config
from utils.files import write_text
from utils.runtime import run_command

# A hobby with its four brands, cheapest first, and their two series; then its categories, each going with the next:
# product | price in dollars | materials | sizes | what it is for
CATALOGUE = """
# Coffee | Brewmark: Dawn, Ember | Kettlewell: Harbor, Mistral | Torrefino: Lucia, Vento | Osaka Works: Kaze, Tsuki
burr grinder | 45 | steel, ceramic, walnut | 30 g, 60 g, 100 g | Grinds whole beans evenly, from fine to coarse
gooseneck kettle | 50 | steel, copper, enamel | 0.6 l, 0.9 l, 1.2 l | Pours hot water slowly and precisely
pour-over dripper | 22 | ceramic, glass, copper | 1 cup, 2 cups, 4 cups | Brews a clear cup by hand
filter set | 9 | paper, cotton, hemp | 40 pieces, 100 pieces, 200 pieces | Keeps the grounds out of the cup
mug | 14 | stoneware, glass, bamboo | 200 ml, 300 ml, 450 ml | Keeps a fresh brew warm at the breakfast table
bean canister | 24 | steel, glass, acacia | 250 g, 500 g, 1 kg | Stores roasted beans away from air and light
# Guitar | Stringway: Busker, Rambler | Fretline: Delta, Juke | Maplewood: Chorale, Sonata | Luthier Row: Opus, Solera
acoustic guitar | 180 | spruce, cedar, mahogany | parlour, concert, dreadnought | Warm tone for songs at home
string set | 8 | bronze, nickel, nylon | light gauge, middle gauge, heavy gauge | Bright sound and a long life
pick assortment | 5 | celluloid, tortex, horn | thin, medium, thick | Clear attack for strumming and solos
shoulder strap | 19 | leather, canvas, hemp | short, regular, long | Carries the instrument comfortably while standing
clip-on tuner | 16 | plastic, aluminium, steel | mini, standard, stage | Finds the pitch within a cent in noisy rooms
carrying case | 60 | plywood, polyfoam, carbon | slim, padded, touring | Protects the instrument on the road
# Camping | Trailhead: Fox, Heron | Northpeak: Fjord, Tundra | Basecamp: Lhotse, Makalu | Altura: Condor, Puma
tent | 140 | polyester, ripstop, cotton | 1 person, 2 persons, 4 persons | Stands firm in wind and rain
sleeping bag | 80 | down, synthetic, wool | summer, autumn, winter | Keeps sleepers warm through cold nights
sleeping mat | 40 | foam, inflatable, cork | short, regular, wide | Insulates from the ground and packs small
gas stove | 38 | aluminium, titanium, brass | solo, duo, family | Boils water quickly even at altitude
cook set | 34 | aluminium, titanium, steel | 3 parts, 5 parts, 9 parts | Nested pots and pans for meals outdoors
lantern | 26 | plastic, aluminium, glass | 150 lumens, 300 lumens, 600 lumens | Lights the camp for a whole night
# Cycling | Spokely: Dash, Loop | Velora: Breeze, Sprint | Gravelhaus: Kies, Wald | Corsa Nera: Strada, Vetta
helmet | 55 | polycarbonate, carbon, composite | small, medium, large | Light protection with good airflow
front light | 30 | plastic, aluminium, rubber | 200 lux, 500 lux, 900 lux | Shows the road ahead and makes riders seen
saddle | 42 | leather, gel, carbon | narrow, standard, broad | Supports the rider on long distances
handlebar tape | 15 | cork, leather, silicone | thin grip, soft grip, thick grip | Damps the buzz of rough roads
frame pump | 27 | aluminium, steel, carbon | 6 bar, 8 bar, 11 bar | Gets a flat tyre rolling again
pannier bag | 65 | canvas, tarpaulin, nylon | 10 l, 20 l, 30 l | Carries shopping and luggage dry
# Painting | Daubery: Pip, Skylark | Canvasso: Ochre, Umber | Pigmento: Siena, Veneto | Atelier Nord: Aurora, Polaris
easel | 70 | beech, aluminium, oak | table, studio, field | Holds the picture steady at every angle
stretched canvas | 18 | cotton, linen, jute | 30 x 40 cm, 50 x 70 cm, 80 x 100 cm | Primed ground ready for paint
paint box | 36 | acrylic, oil, watercolour | 12 colours, 24 colours, 48 colours | Strong pigments that mix cleanly
brush set | 21 | bristle, sable, synthetic | 5 brushes, 8 brushes, 12 brushes | Round and flat tips for line and wash
palette | 12 | porcelain, wood, plastic | 8 wells, 14 wells, 20 wells | Room to mix every shade
picture varnish | 17 | gloss, matt, satin | 75 ml, 250 ml, 500 ml | Protects the finished picture from dust and light
# Gardening | Greenthumb: Clover, Daisy | Rootwell: Bramble, Sorrel | Fernhill: Hazel, Willow | Kewton: Regent, Windsor
planter | 28 | terracotta, zinc, cedarwood | 20 cm, 35 cm, 50 cm | Gives balcony plants room for their roots
potting soil | 11 | peat-free, coir, compost | 10 l, 25 l, 40 l | Feeds young plants for the first weeks
seed collection | 7 | herb, vegetable, wildflower | 6 packets, 12 packets, 20 packets | Sprouts reliably from spring on
hand trowel | 16 | steel, copper, ash | slim blade, standard blade, wide blade | Digs and plants without bending
watering can | 25 | zinc, plastic, copper | 2 l, 5 l, 10 l | Waters seedlings with a gentle rose
pruning shears | 32 | steel, titanium, bamboo | small hand, medium hand, large hand | Cuts shoots cleanly
"""
NUM_BRANDS, SERIES_PER_BRAND, NUM_MATERIALS, NUM_SIZES, NUM_CATEGORIES = 4, 2, 3, 3, 6
NUM_SERIES = NUM_BRANDS * SERIES_PER_BRAND
NUM_HOBBIES = CATALOGUE.count("#")
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
    """Settings of the sample dataset.

    Attributes:
        data_dir: Folder that holds dataset folders.
        dataset: Name of the dataset folder to write.
        rand_seed: Seed of all random choices.
        num_users: Users, at least as many as items so that each item is bought.
        num_items: Items.
        overwrite: Replace another dataset in that folder.
    """

    data_dir: str = "datasets"
    dataset: str = "Sample"
    rand_seed: int = 2024
    num_users: int = 3000
    num_items: int = 600
    overwrite: bool = False

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
    category: np.ndarray  # [N], position within the hobby
    series: np.ndarray  # [N], within the hobby
    tier: np.ndarray  # [N], price tier = brand within the hobby
    size: np.ndarray  # [N]
    texts: list[str]


# Draws uniform float64 numbers from [0, 1) in the given shape.
Uniform = Callable[..., np.ndarray]


def parse_catalogue() -> list[Category]:
    """Read CATALOGUE: all categories in order, hobby by hobby."""
    categories, hobby, series = [], "", []
    for line in CATALOGUE.strip().splitlines():
        fields = [field.strip() for field in line.lstrip("# ").split("|")]
        if line.startswith("#"):
            hobby = fields[0]
            brands = [brand.split(": ") for brand in fields[1:]]
            series = [(brand, name) for brand, names in brands for name in names.split(", ")]
        else:
            product, price, materials, sizes, use = fields
            categories.append(
                Category(hobby, series, product, int(price), materials.split(", "), sizes.split(", "), use)
            )
    return categories


def describe(category: Category, series: int, material: int, size: int) -> str:
    """Return the text of one product: title, brand, hobby, use and price."""
    brand, line = category.series[series]
    percent = PRICE_OF_TIER[series // SERIES_PER_BRAND]
    dollars = category.price * percent * (100 + 15 * material) * (100 + 25 * size) // 10**6
    title = f"{brand} {line} {category.materials[material]} {category.product}, {category.sizes[size]}"
    return f"{title}. {brand}. {category.hobby}. {category.use}. ${dollars}.95."


def make_items(num_items: int, uniform: Uniform) -> Items:
    """Choose the shop's items: the categories equally large, the series equally frequent in each.

    Args:
        num_items: Items N, ITEMS_PER_HOBBY..MAX_ITEMS.
        uniform: Source of random numbers.

    Returns:
        The items, ordered by hobby and category.
    """
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
            hobby, position = divmod(index, NUM_CATEGORIES)
            codes.append((hobby, position, int(series), int(series) // SERIES_PER_BRAND, size))
            texts.append(describe(category, int(series), material, size))
    return Items(*np.array(codes).T.copy(), texts)


class Shoppers(NamedTuple):
    """What U users are like, H hobbies."""

    first: np.ndarray  # int64 [U], the item that they buy first
    length: np.ndarray  # int64 [U], items that they buy in all, SHORTEST..LONGEST
    taste: np.ndarray  # float64 [U, H], log odds of each hobby
    favourite: np.ndarray  # int64 [U, H], tier of the favourite brand in each hobby
    loyalty: np.ndarray  # float64 [U], 0..1
    budget: np.ndarray  # int64 [U], price tier
    size: np.ndarray  # int64 [U]


def make_shoppers(items: Items, num_users: int, uniform: Uniform) -> Shoppers:
    """Draw the users. First items go round the whole shop, so that every item is bought."""
    num_items, num_hobbies = len(items.texts), int(items.hobby.max()) + 1
    rounds = [uniform(num_items).argsort() for _ in range(-(-num_users // num_items))]
    first = np.concatenate(rounds)[:num_users]
    users, home = np.arange(num_users), items.hobby[first]
    extra = np.floor(-MEAN_EXTRA * np.log1p(-uniform(num_users))).astype(np.int64)
    taste = np.full((num_users, num_hobbies), OTHER_HOBBY)
    if num_hobbies > 1:
        second = (home + 1 + np.floor(uniform(num_users) * (num_hobbies - 1)).astype(np.int64)) % num_hobbies
        taste[users, second] = -2 * uniform(num_users)
    taste[users, home] = 0.0
    favourite = np.floor(uniform((num_users, num_hobbies)) * NUM_BRANDS).astype(np.int64)
    favourite[users, home] = items.tier[first]
    return Shoppers(
        first=first,
        length=np.minimum(SHORTEST + extra, LONGEST),
        taste=taste,
        favourite=favourite,
        loyalty=uniform(num_users),
        budget=items.tier[first],
        size=np.floor(uniform(num_users) * NUM_SIZES).astype(np.int64),
    )


def lasting_appeal(items: Items, shoppers: Shoppers, uniform: Uniform) -> np.ndarray:
    """Return each item's log odds for each user before anything is bought, float64 [U, N]."""
    ranks = uniform(len(items.texts)).argsort() + 1
    favourite = shoppers.favourite[:, items.hobby] == items.tier  # [U, N]
    return (
        shoppers.taste[:, items.hobby]
        + FAVOURITE_BRAND * shoppers.loyalty[:, None] * favourite
        + PRICE_TIER * np.abs(items.tier - shoppers.budget[:, None])
        + SAME_SIZE * (items.size == shoppers.size[:, None])
        - POPULARITY * np.log(ranks)
    )


def appeal_after(items: Items, last: np.ndarray, latest: np.ndarray) -> np.ndarray:
    """Return what past purchases add to each item's log odds.

    Args:
        items: The N items.
        last: Last item of each of B users, int64 [B].
        latest: Last item in each hobby, -1 where there is none, int64 [B, H].

    Returns:
        Summands, float64 [B, N].
    """
    before = latest[:, items.hobby]  # [B, N]
    steps = (items.category - items.category[before]) % NUM_CATEGORIES
    goes_with = np.array(COMPLEMENT)[steps] + SAME_SERIES * (items.series == items.series[before])
    return goes_with * (before >= 0) + SAME_HOBBY * (items.hobby == items.hobby[last][:, None])


def make_sequences(items: Items, num_users: int, uniform: Uniform) -> list[list[int]]:
    """Let every user shop, nobody buying an item twice.

    Args:
        items: The items.
        num_users: Users U.
        uniform: Source of random numbers.

    Returns:
        Each user's item indices in time order, SHORTEST..LONGEST of them.
    """
    shoppers = make_shoppers(items, num_users, uniform)
    appeal = lasting_appeal(items, shoppers, uniform)
    latest = np.full(shoppers.taste.shape, -1)
    bought = np.full((num_users, LONGEST), -1)
    last = shoppers.first
    active = np.arange(num_users)
    for step in range(LONGEST):
        bought[active, step] = last
        latest[active, items.hobby[last]] = last
        appeal[active, last] = -np.inf
        going_on = shoppers.length[active] > step + 1
        active, last = active[going_on], last[going_on]
        scores = appeal[active] + appeal_after(items, last, latest[active])
        # The largest score plus Gumbel noise is a draw from the softmax of the scores.
        last = (scores - np.log(-np.log(uniform(scores.shape)))).argmax(axis=1)
    return [row[:length].tolist() for row, length in zip(bought, shoppers.length, strict=True)]


def make_sample(rand_seed: int, num_users: int, num_items: int) -> dict[str, Any]:
    """Make the dataset.

    Args:
        rand_seed: Seed, at least 0.
        num_users: Users, at least num_items.
        num_items: Items, ITEMS_PER_HOBBY..MAX_ITEMS.

    Returns:
        File name -> JSON value, in the published format; ids from 1 in the order of first appearance.
    """
    uniform = np.random.Generator(np.random.PCG64(rand_seed)).random
    items = make_items(num_items, uniform)
    names = [f"I{index:04d}" for index in range(1, num_items + 1)]
    sequences = {
        f"U{index:05d}": [names[item] for item in sequence]
        for index, sequence in enumerate(make_sequences(items, num_users, uniform), start=1)
    }
    texts = dict(zip(names, items.texts, strict=True))
    id2item = ["[PAD]", *dict.fromkeys(item for sequence in sequences.values() for item in sequence)]
    id2user = ["[PAD]", *sequences]
    return {
        "metadata.sentence.json": {item: texts[item] for item in id2item[1:]},
        "all_item_seqs.json": sequences,
        "id_mapping.json": {
            "user2id": {user: index for index, user in enumerate(id2user)},
            "item2id": {item: index for index, item in enumerate(id2item)},
            "id2user": id2user,
            "id2item": id2item,
        },
    }


def write_dataset(folder: Path, files: dict[str, Any], overwrite: bool) -> bool:
    """Write the files of a dataset folder, unless they are there already.

    Args:
        folder: Dataset folder.
        files: File name -> JSON value.
        overwrite: Replace files that differ.

    Returns:
        Whether anything was written.

    Raises:
        InputError: The folder holds another dataset, or files made from one.
    """
    texts = {name: json.dumps(value, indent=0, ensure_ascii=False) + "\n" for name, value in files.items()}
    present = {name for name in texts if (folder / name).exists()}
    differing = sorted(name for name in present if (folder / name).read_bytes() != texts[name].encode())
    derived = sorted(path.name for path in folder.glob("*") if path.name not in texts)
    protected = (
        f"also holds {', '.join(derived)}, made from the dataset that is to be replaced; "
        "move or remove the folder, or choose another --dataset"
    )
    claim(
        folder,
        "finished" if differing else "nothing",
        overwrite=overwrite,
        refusal=f"holds another dataset ({', '.join(differing)} would change); "
        "choose another --dataset, or replace it with --overwrite=true",
        protected=protected if derived and overwrite else "",
    )
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
