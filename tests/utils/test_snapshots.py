from pathlib import Path

import pytest
import torch

from utils.errors import InputError
from utils.snapshots import load_optimizer_, newest_snapshot, optimizer_tensors, read_snapshot, write_snapshot


def write(folder: Path, number: int, attachment: Path | None = None) -> Path:
    return write_snapshot(folder, {"a": torch.full((3,), float(number))}, {"step": number}, attachment)


def test_the_newest_two_are_kept_and_the_newest_is_read(tmp_path):
    assert newest_snapshot(tmp_path / "state") == (None, [])
    for number in range(1, 12):
        write(tmp_path / "state", number)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["10", "11"]
    path, skipped = newest_snapshot(tmp_path / "state")
    assert (path.name, skipped) == ("11", [])
    snapshot = read_snapshot(path)
    assert snapshot.values == {"step": 11}
    assert snapshot.tensors["a"].tolist() == [11.0] * 3


def test_a_damaged_state_does_not_count_among_those_that_are_kept(tmp_path):
    for number in (1, 2):
        path = write(tmp_path, number)
    (path / "tensors.safetensors").write_bytes(b"half")
    path, (said,) = newest_snapshot(tmp_path)
    assert path.name == "1"
    assert said.startswith(f"skipped the saved state {tmp_path / '2'}: ")
    write(tmp_path, 3)
    whole = [read_snapshot(tmp_path / name).values["step"] for name in ("1", "2")]
    assert whole == [1, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "2.damaged"]


def test_an_attachment_stays_what_it_was(tmp_path):
    best = tmp_path / "best"
    best.mkdir()
    (best / "weights").write_text("first")
    path = write(tmp_path / "state", 1, best)
    (tmp_path / "new").write_text("second")
    (tmp_path / "new").replace(best / "weights")  # as atomic writing does
    assert (read_snapshot(path).attachment / "weights").read_text() == "first"
    (path / "attachment" / "weights").unlink()
    with pytest.raises(InputError, match=r"no saved state is whole .*attachment/weights does not exist.*--overwrite"):
        newest_snapshot(tmp_path / "state")


def test_names_that_are_no_numbers_are_no_states(tmp_path):
    for name in (".3.77.tmp", "notes"):
        (tmp_path / "state" / name).mkdir(parents=True)
    assert newest_snapshot(tmp_path / "state") == (None, [])


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adagrad])
def test_an_optimizer_goes_on_as_if_nothing_had_been(kind):
    def step(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        parameter.grad = parameter.detach() * 2
        optimizer.step()

    first = torch.nn.Parameter(torch.arange(1.0, 5.0))
    optimizer = kind([first], lr=0.1)
    step(first, optimizer)
    second = torch.nn.Parameter(first.detach().clone())
    other = kind([second], lr=0.1)
    load_optimizer_(other, {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()})
    step(first, optimizer)
    step(second, other)
    assert torch.equal(first, second)
