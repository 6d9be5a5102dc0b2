import json
from pathlib import Path

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
    assert list(users) == interactions.user_names
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
