import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from data import recbole, sample
from data.interactions import load_interactions, split_positions
from utils.errors import InputError


def test_leave_one_out_of_the_files_gives_the_same_splits(tmp_path: Path):
    """RecBole sorts by time and takes each user's last item for the test, the one before for validation."""
    sample.main([f"--data_dir={tmp_path}", "--dataset=Shop", "--num_users=120", "--num_items=80"])
    recbole.main(["--dataset=Shop", f"--data_dir={tmp_path}", f"--output={tmp_path / 'out'}"])
    folder = tmp_path / "out" / "Shop"
    lines = [line.split("\t") for line in (folder / "Shop.inter").read_text().splitlines()]
    assert lines[0] == ["user_id:token", "item_id:token", "timestamp:float"]
    users: dict[str, list[tuple[int, str]]] = {}
    for user, item, place in lines[1:]:
        users.setdefault(user, []).append((int(place), item))
    interactions = load_interactions(tmp_path / "Shop")
    assert list(users) == list(interactions.user_names)
    for split, back in (("test", 1), ("valid", 2)):
        positions = split_positions(interactions.offsets, split)
        targets = [interactions.item_names[item] for item in interactions.items[positions]]
        assert targets == [sorted(rows)[-back][1] for rows in users.values()]
        histories = [[interactions.item_names[i] for i in interactions.history(position)] for position in positions]
        assert histories == [[item for _, item in sorted(rows)[:-back]] for rows in users.values()]
    items = [line.split("\t") for line in (folder / "Shop.item").read_text().splitlines()]
    texts = json.loads((tmp_path / "Shop" / "metadata.sentence.json").read_text())
    assert items[0] == ["item_id:token", "text:token_seq"]
    assert {name: text for name, text in items[1:]} == texts
    settings = yaml.safe_load((folder / "Shop.yaml").read_text())
    assert settings["eval_args"]["split"] == {"LS": "valid_and_test"}
    assert settings["MAX_ITEM_LIST_LENGTH"] == 20
    with pytest.raises(InputError, match="Shop is there already; --overwrite replaces it"):
        recbole.main(["--dataset=Shop", f"--data_dir={tmp_path}", f"--output={tmp_path / 'out'}"])
    with pytest.raises(InputError, match="Shop is there already and was not made by this command"):
        recbole.main(["--dataset=Shop", f"--data_dir={tmp_path}", f"--output={tmp_path}", "--overwrite"])


def test_short_users_are_refused(dataset: Path, tmp_path: Path):
    with pytest.raises(InputError, match="'user1' has 1 items; RecBole's leave-one-out needs 3"):
        recbole.main(["--dataset=Tiny", f"--data_dir={dataset.parent}", f"--output={tmp_path / 'out'}"])


def test_names_that_recbole_would_read_otherwise_are_renamed_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture):
    """RecBole reads with pandas' Python engine; what it reads, with the renamed put back, is the dataset."""
    folder = tmp_path / "Odd"
    folder.mkdir()
    items = ["NA", "", 'a"b', "tab\there", "line\nbreak", "item_1", "None", "007", " plain ", "é"]
    users = ["null", '"ann', "bob"]
    texts = {item: f'A "{place}" inch' for place, item in enumerate(items)} | {"007": "NA"}
    (folder / "metadata.sentence.json").write_text(json.dumps(texts))
    (folder / "all_item_seqs.json").write_text(json.dumps({user: items for user in users}))
    ids = {
        "user2id": {user: n for n, user in enumerate(users, 1)},
        "item2id": {item: n for n, item in enumerate(items, 1)},
    }
    (folder / "id_mapping.json").write_text(json.dumps(ids))
    recbole.main(["--dataset=Odd", f"--data_dir={tmp_path}", f"--output={tmp_path / 'out'}"])
    renamed = json.loads((tmp_path / "out" / "Odd" / "renamed.json").read_text())
    assert renamed["users"] == {"user_0": "null", "user_1": '"ann'}
    assert renamed["items"] == dict(
        zip(["item__1", "item_2", "item_3", "item_4", "item_5", "item_7"], [*items[:5], "None"], strict=True)
    )
    assert "2 users and 6 items; renamed.json has their names" in capsys.readouterr().out

    def read(ending: str) -> pd.DataFrame:
        return pd.read_csv(tmp_path / "out" / "Odd" / f"Odd.{ending}", delimiter="\t", dtype=str, engine="python")

    inter = read("inter")
    assert [renamed["users"].get(user, user) for user in inter["user_id:token"]] == [
        user for user in users for _ in items
    ]
    assert [renamed["items"].get(item, item) for item in inter["item_id:token"]] == items * len(users)
    text = [*(f'A "{place}" inch' for place in range(10))]
    assert read("item")["text:token_seq"].tolist() == [*text[:7], "NA.", *text[8:]]


def test_a_linked_folder_is_written_through(dataset: Path, tmp_path: Path):
    sample.main([f"--data_dir={tmp_path}", "--dataset=Shop", "--num_users=120", "--num_items=80"])
    real = tmp_path / "disk"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "Shop").symlink_to(real)
    for flags in ([], ["--overwrite"]):
        recbole.main(["--dataset=Shop", f"--data_dir={tmp_path}", f"--output={tmp_path / 'out'}", *flags])
        assert sorted(path.name for path in real.iterdir()) == ["Shop.inter", "Shop.item", "Shop.yaml"]
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["Shop"]
        assert (tmp_path / "out" / "Shop").is_symlink()
