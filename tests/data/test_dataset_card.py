import json
import re
import shlex
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard
from raw_files import write_table

from data import prepare
from data.dataset_card import dataset_card, has_own_card


def tables(folder: Path) -> list[str]:
    """Write orders of 12 users, one of them without a time, and products; return the flags that prepare them."""
    orders = [
        {"customer": f"ann{user}", "sku": f"sku{item}", "at": 1_700_000_000 + item}
        for user in range(12)
        for item in range(6)
    ]
    write_table(folder, "csv", [*orders, {"customer": "ann1", "sku": "sku2", "at": ""}], "orders")
    write_table(folder, "csv", [{"sku": f"sku{item}", "name": f"name {item}"} for item in range(6)], "products")
    columns = ["--user_col=customer", "--item_col=sku", "--time_col=at", "--text_cols=name"]
    return ["--dataset=Shop", f"--interactions={folder}/orders.csv", f"--items={folder}/products.csv", *columns]


def prepared(folder: Path, *flags: str) -> str:
    prepare.main([*flags, f"--data_dir={folder}"])
    return (folder / "Shop" / "README.md").read_text()


def test_the_card_says_how_large_the_dataset_is_and_what_was_dropped(tmp_path: Path):
    flags = tables(tmp_path)
    text = prepared(tmp_path / "here", *flags)
    assert prepared(tmp_path / "there", *flags, "--threads=1") == text
    sha256 = json.loads((tmp_path / "here/Shop/stats.json").read_text())["settings"]["interactions"]["sha256"]
    for line in (
        "| 12 | 6 | 72 | 0.000% | 6.00 |",
        f"| `orders.csv` | `{sha256}` |",
        "1. Rows without a user, an item or a time were dropped.",
        "2. Where a user took an item several times, only the first is kept.",
        "4. Items without a text were dropped, and then step 3 was done again.",
        "Of 73 rows were dropped:",
        "| no time | 1 |",
    ):
        assert line in text.splitlines(), line
    command = shlex.split(re.search(r"```bash\n(.*)\n```", text)[1])
    assert command[:3] == ["python", "-m", "data.prepare"]
    names = [flag.replace(f"{tmp_path}/", "") for flag in flags]
    assert set(command[3:]) == {*names, "--k_core=5", "--source=table"}
    card = DatasetCard(text, ignore_metadata_errors=False)
    assert (card.data.pretty_name, card.data.license, card.data.size_categories) == ("Shop", None, ["n<1K"])


def test_other_settings_give_other_sentences(tmp_path: Path):
    text = prepared(tmp_path, *tables(tmp_path), "--keep_repeats", "--k_core=1", "--rating_col=at", "--min_rating=0")
    assert "1. Rows without a user, an item or a time were dropped, and those rated below 0.0." in text
    assert "2. Where a user took an item several times, all times are kept." in text
    assert "3. Items without a text were dropped." in text
    assert "--min_rating=0.0" in text


@pytest.mark.parametrize(
    ("interactions", "category"), [(999, "n<1K"), (1000, "1K<n<10K"), (9_999_999, "1M<n<10M"), (10_000_000, "n>10M")]
)
def test_sizes_are_in_the_words_of_hubs(interactions: int, category: str, tmp_path: Path):
    prepared(tmp_path, *tables(tmp_path))
    stats = json.loads((tmp_path / "Shop" / "stats.json").read_text())
    stats["dataset"]["interactions"] = interactions
    assert DatasetCard(dataset_card(stats)).data.size_categories == [category]


def test_a_card_of_the_users_own_stays(tmp_path: Path, capsys: pytest.CaptureFixture):
    flags, folder = tables(tmp_path), tmp_path / "Shop"
    card = folder / "README.md"
    folder.mkdir()
    card.write_bytes(b"Mine, in Latin-1: \xe9")
    prepare.main([*flags, f"--data_dir={tmp_path}"])
    assert card.read_bytes() == b"Mine, in Latin-1: \xe9"
    assert "README.md: yours, so it stays as it is" in capsys.readouterr().out
    card.unlink()
    prepare.main([*flags, f"--data_dir={tmp_path}", "--k_core=2", "--overwrite"])
    assert not has_own_card(folder)
    prepare.main([*flags, f"--data_dir={tmp_path}", "--k_core=3", "--overwrite"])  # ours is replaced
    assert "fewer than 3 interactions" in card.read_text()
    edited = card.read_text().replace("# license: name one here", "license: mit  #")
    card.write_text(edited)
    prepare.main([*flags, f"--data_dir={tmp_path}", "--k_core=4", "--overwrite"])
    assert card.read_text() == edited
