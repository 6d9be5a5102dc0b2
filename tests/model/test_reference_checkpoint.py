"""The reference code's checkpoints: sizes, weights, and pickles that would run something."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from model.recommender import Recommender, build_recommender
from model.reference_checkpoint import read_reference_checkpoint, sizes_of_weights
from utils.errors import InputError


@pytest.mark.parametrize("feed_forward_proj", ["relu", "gated-gelu"])
def test_sizes_of_weights(make: Callable[..., Recommender], feed_forward_proj: str):
    expected = {
        **{"network": "t5", "vocab_size": 16, "num_layers": 2, "num_decoder_layers": 3},
        **{"d_model": 12, "d_ff": 20, "num_heads": 2, "d_kv": 7},
    }
    assert sizes_of_weights(make(feed_forward_proj=feed_forward_proj).state_dict()) == expected


def test_reference_checkpoint_round_trip(recommender: Recommender, make: Callable[..., Recommender], tmp_path: Path):
    torch.save({"model": recommender.state_dict(), "optimizer": {}, "scheduler": {}}, tmp_path / "best.pth")
    weights = read_reference_checkpoint(tmp_path / "best.pth")
    other = build_recommender(recommender.architecture)
    other.load_weights(weights, "best.pth")
    assert_close(other.state_dict(), recommender.state_dict(), rtol=0, atol=0)
    with pytest.raises(InputError, match=r"weights of best\.pth do not fit the model"):
        make(level_sizes=(3, 3)).load_weights(weights, "best.pth")


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.write_text, (self.file, "executed")


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, zipped: bool):
    trap, file = tmp_path / "trap", tmp_path / "best.pth"
    content = {"model": {"t5.shared.weight": Malicious(trap)}}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"best\.pth is not a readable checkpoint of tensors"):
        read_reference_checkpoint(file)
    assert not trap.exists()
    torch.load(file, weights_only=False)  # the trap itself works
    assert trap.exists()


def test_other_checkpoints_are_refused(tmp_path: Path):
    file = tmp_path / "best.pth"
    for content in (b"", b"not a checkpoint"):
        file.write_bytes(content)
        with pytest.raises(InputError, match="is not a readable checkpoint"):
            read_reference_checkpoint(file)
    for content in ({"model": {"w": torch.zeros(1)}}, {"weights": {}}, [torch.zeros(1)], {"model": 3}):
        torch.save(content, file)
        with pytest.raises(InputError, match=r"no weights under model/t5\.shared\.weight"):
            read_reference_checkpoint(file)
    with pytest.raises(InputError, match="is not a readable checkpoint"):
        read_reference_checkpoint(tmp_path / "nothing.pth")
