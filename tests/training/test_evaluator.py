import pytest

from training.evaluator import mean_over_groups, validation_advice


def test_mean_over_groups():
    assert mean_over_groups([{"ndcg@5": 0.2, "recall@5": 1.0}, {"ndcg@5": 0.4, "recall@5": 0.0}]) == {
        "ndcg@5": pytest.approx(0.3),
        "recall@5": 0.5,
    }


def test_validation_that_falls_three_times_in_a_row():
    assert validation_advice("ndcg@10", [0.5, 0.4, 0.3]) is None
    assert validation_advice("ndcg@10", [0.5, 0.4, 0.45, 0.3]) is None
    assert validation_advice("ndcg@10", [0.1, 0.5, 0.4, 0.3, 0.3]) is None
    text = validation_advice("ndcg@10", [0.1, 0.5, 0.4, 0.3, 0.2])
    assert text.startswith("validation ndcg@10 has fallen 3 times in a row, from 0.5000 to 0.2000")
