import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.interactions import Interactions, training_part
from evaluation.results import Results, ensemble, most_popular, read_comparable, read_results, user_bins
from utils.errors import InputError


def make(items: list[list[str]], targets: list[str], scores: list[list[float]] | None = None) -> Results:
    users = [f"u{row}" for row in range(len(items))]
    return Results(users, items, scores or [[-float(rank) for rank in range(len(row))] for row in items], targets)


def test_ranks_coverage_and_invalid_share():
    results = make([["a", None, "b"], [None, "c", "c"], ["d", "a", None]], ["b", "c", "x"])
    assert results.ranks().tolist() == [2, 1, 3]
    assert results.invalid_share(2) == pytest.approx(2 / 6)
    assert results.coverage(2, 8) == pytest.approx(3 / 8)  # a, c, d


def test_ensemble_by_hand():
    """b is in both files, a once, c twice in one file; no item counts for nothing but its score."""
    first = make([["a", "b", None]], ["b"], [[-1.0, -2.0, -0.5]])
    second = make([["c", "b", "c"]], ["b"], [[-3.0, -4.0, -5.0]])
    joined = ensemble([first, second])
    assert joined.items == [["a", None, "b"]]  # and c last, -4.0 + 2
    assert joined.scores == [[-1.0 + 1, -0.5, -3.0 + 2]]
    few = ensemble([make([["a", "a"]], ["a"]), make([["a", "a"]], ["a"])])
    assert few.items == [["a", None]]


def test_equal_scores_stand_in_order_of_appearance():
    results = [make([["b", "a"]], ["a"], [[-1.0, -1.0]]), make([["c", "d"]], ["a"], [[-1.0, -1.0]])]
    assert ensemble(results).items == [["b", "a"]]


def test_a_mixture_is_the_mean_of_the_probabilities_by_hand():
    """b has .3 of one tokenizer and .4 of the other, a .5 and c .1 of one alone; what is no item is left out."""
    levels = 2

    def listed(items: list[str | None], probabilities: list[float]) -> Results:
        results = make([items], ["b"], [(np.log(probabilities) / levels).tolist()])
        return replace(results, levels=levels)

    results = [listed(["a", "b", None], [0.5, 0.3, 0.2]), listed(["b", None, "c"], [0.4, 0.3, 0.1])]
    joined = ensemble(results, "mixture")
    assert joined.items == [["b", "a", "c"]]
    assert np.exp(levels * np.asarray(joined.scores[0])) == pytest.approx([0.35, 0.25, 0.05])
    few = ensemble([listed(["a", None], [0.5, 0.2]), listed([None, "a"], [0.5, 0.1])], "mixture")
    assert few.items == [["a", None]]
    with pytest.raises(InputError, match=r"found: 2, none\. Take files of"):
        ensemble([results[0], replace(results[1], levels=None)], "mixture")


def test_groups():
    bins = user_bins(np.asarray([0, 19, 20, 99, 1000]), [20, 40, 60])
    assert {name: members.tolist() for name, members in bins.items()} == {
        "0-19": [True, True, False, False, False],
        "20-39": [False, False, True, False, False],
        "60+": [False, False, False, True, True],
    }


def test_files_are_checked(tmp_path: Path):
    file, other = tmp_path / "a.json", tmp_path / "b.json"
    results = make([["a", "b"], ["c", None]], ["b", "c"])
    results.save(file)
    assert read_results(file) == results
    make([["a", "b"], ["c", None]], ["b", "a"]).save(other)
    with pytest.raises(InputError, match=r"a\.json and .*b\.json are results of different users or splits"):
        read_comparable([file, other], 2)
    assert read_comparable([file, file], 2) == [results, results]
    with pytest.raises(InputError, match=r"a\.json lists 2 items for each user: lower the cut-offs, --topk, from 3"):
        read_comparable([file, file], 3)
    content = json.loads(file.read_text())
    other.write_text(json.dumps(content | {"label_ids": ["b"]}))
    with pytest.raises(InputError, match="must be equally long"):
        read_results(other)
    other.write_text(json.dumps({"recall": 1}))
    with pytest.raises(InputError, match="is no result file per user"):
        read_results(other)


def test_a_place_that_could_not_be_filled_has_no_infinity_in_json(tmp_path: Path):
    results = make([["a", None]], ["a"], [[-1.5, -np.inf]])
    results.save(tmp_path / "few.json")
    assert '"scores": [[-1.5, null]]' in (tmp_path / "few.json").read_text()
    assert read_results(tmp_path / "few.json") == results


def test_an_item_may_be_named_none(tmp_path: Path):
    results = make([["None", None], ["a", "None"], [None, "b"]], ["None", "None", "a"])
    results.save(tmp_path / "new.json")
    assert json.loads((tmp_path / "new.json").read_text())["pred_ids"][0] == ["None", None]
    found = read_results(tmp_path / "new.json")
    assert found == results
    assert found.ranks().tolist() == [0, 1, 2]
    assert found.invalid_share(2) == pytest.approx(2 / 6)
    assert found.coverage(2, 4) == pytest.approx(3 / 4)
    assert ensemble([found, found]).items == [["None", None], ["a", "None"], ["b", None]]
    without_targets = make([["None", None]], ["a"])
    without_targets.save(tmp_path / "new.json")
    assert read_results(tmp_path / "new.json") == without_targets
    without_null = make([["None", "b"]], ["a"])  # and the item "None" nobody's target
    without_null.save(tmp_path / "new.json")
    assert read_results(tmp_path / "new.json").items == [["None", "b"]]
    make([["a", "b"]], ["a"]).save(tmp_path / "new.json")
    assert "no_item" not in json.loads((tmp_path / "new.json").read_text())


def test_the_text_none_of_older_files(tmp_path: Path):
    """Files of the reference code, and of this project before, have no null."""
    file = tmp_path / "old.json"

    def read(items: list[list[str]], targets: list[str], **more: list) -> Results:
        scores = [[-float(rank) for rank in range(len(row))] for row in items]
        file.write_text(json.dumps({"pred_ids": items, "scores": scores, "label_ids": targets, **more}))
        return read_results(file)

    assert read([["None", "a"]], ["a"]).items == [[None, "a"]]
    assert read([["None", "a"]], ["a"], users=["u"]).items == [[None, "a"]]
    assert read([["None", "a"]], ["None"], users=["u"]).items == [["None", "a"]]
    with pytest.raises(InputError, match=r'old\.json has an item named "None" among its label_ids, and no users'):
        read([["None", "a"]], ["None"])


# Training interactions (all but the last two of each user): 3 3 1 | 4 1 | none | none.
INTERACTIONS = Interactions(
    user_names=["a", "b", "c", "d"],
    user_ids=np.arange(1, 5),
    item_names=["[PAD]", "w", "x", "y", "z", "never"],
    items=np.asarray([3, 3, 1, 2, 2, 4, 1, 2, 2, 2, 2, 2], dtype=np.int32),
    offsets=np.asarray([0, 5, 9, 11, 12]),
)


def test_the_most_popular_items_are_those_with_most_training_interactions():
    items, counts = most_popular(training_part(INTERACTIONS), 5)
    assert items.tolist() == [1, 3, 4, 2, 5]  # equal counts by item id
    assert counts.tolist() == [2, 2, 1, 0, 0]
    assert most_popular(training_part(INTERACTIONS, np.asarray([False, True, True, True])), 2)[0].tolist() == [1, 4]
