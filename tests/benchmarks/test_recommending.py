import json
from pathlib import Path

import pytest

from benchmarks import recommending
from utils.errors import InputError


def test_every_cell_is_measured(tmp_path: Path, capsys):
    flags = ["--items=[50]", "--layers=[1]", "--beams=[2,12]", "--threads=[1]", "--histories=3", "--calls=2"]
    recommending.main([*flags, f"--output={tmp_path}/out.json"])
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["items"], row["layers"], row["beams"], row["threads"]) for row in rows] == [
        (50, 1, 2, 1),
        (50, 1, 12, 1),
    ]
    assert all(0 < row["one_ms"] <= row["one_p95_ms"] and row["together_users_per_s"] > 0 for row in rows)
    assert [line.split()[:4] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["50", "1", "+", "1"],
        ["50", "1", "+", "1"],
    ]


def test_the_model_recommends_its_items():
    model = recommending.make_model(300, 1)
    assert model.catalogue.num_items == 300
    items, scores = model.recommend([["item5", "item7"]], k=10, num_beams=10)
    assert len(set(items[0])) == 10
    assert not {"item5", "item7"} & set(items[0])
    assert scores[0] == sorted(scores[0], reverse=True)


def test_wrong_flags():
    with pytest.raises(InputError, match="all numbers must be at least 1"):
        recommending.main(["--beams=[0]"])
