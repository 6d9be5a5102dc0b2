"""The window of a training's last epochs: which are kept, and which become tokenizers."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from data.token_table import read_sem_ids
from tokenizer.config import TokenizerConfig
from tokenizer.export import export
from tokenizer.folder import load_tokenizer
from tokenizer.quality import share_differing
from tokenizer.train import train
from tokenizer.window import choose_epochs, evenly_spaced, strides


def test_strides_grow_by_the_root_of_two_up_to_half_of_the_training():
    assert strides(1000, 25) == [1, 2, 3, 4, 6, 8, 11, 16]  # 24 x 20 is the widest that fits 500
    assert [strides(epochs, 25)[-1] for epochs in (1103, 1104)] == [16, 23]
    assert strides(10, 25) == [1]


def test_a_window_ends_with_the_last_epoch():
    assert evenly_spaced(100, 4, 10) == [70, 80, 90, 100]
    assert evenly_spaced(3, 4, 1) == [1, 2, 3]  # no more epochs are there


@pytest.mark.parametrize(("drift", "stride"), [(0.0, 1), (0.11, 2), (0.17, 3), (0.28, 6), (0.99, 8)])
def test_the_stride_with_the_nearest_drift_is_chosen(drift: float, stride: int):
    """Each epoch one more of 140 items changes: at stride s, the ends of 8 tokenizers differ in 7 s items, s / 20."""

    def codes(epoch: int) -> np.ndarray:
        return np.column_stack([np.arange(140), np.arange(140) < epoch])

    assert choose_epochs(codes, 120, 8, drift) == list(range(120 - 7 * stride, 121, stride))


def test_training_keeps_the_epochs_that_drift_as_far_as_asked(make_config: Callable[..., TokenizerConfig]):
    config = make_config(epochs=40, num_tokenizers=4, drift=0.3, steps_per_epoch=5, lr=0.01)
    train(config)
    report = export(config)
    record = json.loads((config.tokenizer_folder / "training.json").read_text())
    chosen = record["epochs"][:-1]
    assert record["epochs"] == [*range(40 - 3 * (40 - chosen[-2]), 41, 40 - chosen[-2]), None]
    assert sorted(int(file.stem) for file in (config.tokenizer_folder / "epochs").iterdir()) == chosen
    assert (report["epochs"], list(report["drift"])) == (chosen, [1, 3])
    tokenizer = load_tokenizer(config)
    assert tokenizer.epochs == record["epochs"]
    names = [f"item{number}" for number in range(60)]
    files = [next(config.tokenizer_folder.glob(f"*_{epoch}.sem_ids")) for epoch in (chosen[0], chosen[-1])]
    ends = [read_sem_ids(file, names, config.level_sizes) for file in files]
    assert report["drift"][3]["any"] == pytest.approx((ends[0] != ends[1]).any(axis=1).mean())


def test_a_trained_window_is_reused(make_config: Callable[..., TokenizerConfig], capsys: pytest.CaptureFixture):
    config = make_config(epochs=12, num_tokenizers=3, drift=0.3)
    train(config)
    capsys.readouterr()
    train(config)
    assert "reused" in capsys.readouterr().out
    export(config)  # of the chosen epochs alone


def test_ends_are_measured_with_disambiguation():
    first = np.array([[0, 1], [0, 1], [0, 2]])
    second = np.array([[0, 1], [0, 2], [0, 2]])  # the third is now the second of a group
    assert share_differing(first, second) == pytest.approx(2 / 3)
