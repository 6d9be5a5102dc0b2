import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from training.schedule import cosine_factor, stage_ends


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (1, 1), (5, 5), (12, 10), (7, 100)])
def test_cosine_equals_the_one_of_transformers(warmup: int, total: int):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, total)
    (factor,) = scheduler.lr_lambdas
    for position in range(total + 1):
        assert cosine_factor(position, warmup, total) == pytest.approx(factor(position), abs=1e-12)


def test_cosine_by_hand():
    assert [cosine_factor(position, 2, 10) for position in (0, 1, 2)] == [0, 0.5, 1]
    assert cosine_factor(6, 2, 10) == pytest.approx(0.5)
    assert cosine_factor(10, 2, 10) == 0
    assert cosine_factor(18, 2, 10) == 0  # uneven global batches may step beyond the end


@pytest.mark.parametrize(
    ("epoch_per_stage", "epochs", "ends", "dropped"),
    [
        ([60, 20, 20, 20, 20, 20, 20], 200, [60, 80, 100, 120, 140, 160, 180, 200], []),
        ([60, 20, 20, 20, 20, 20, 20], 180, [60, 80, 100, 120, 140, 160, 180], []),
        ([60, 20, 20, 20, 20, 20, 20], 110, [60, 80, 100, 110], [20, 20, 20, 20]),
        ([60, 20, 20], 80, [60, 80], [20]),
        ([60, 20], 10, [10], [60, 20]),
        ([1, 1], 2, [1, 2], []),
        ([3], 3, [3], []),
        ([2, 9, 1], 4, [2, 4], [9, 1]),
    ],
)
def test_stage_ends(epoch_per_stage: list[int], epochs: int, ends: list[int], dropped: list[int]):
    given = list(epoch_per_stage)
    assert stage_ends(epoch_per_stage, epochs) == (ends, dropped)
    assert epoch_per_stage == given
