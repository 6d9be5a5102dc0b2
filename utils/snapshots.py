"""States that a run can go on from: numbered folders with checksums, each whole or skipped; the newest two are kept."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor
from torch.optim import Optimizer

from utils.errors import InputError
from utils.files import atomic_folder, check_checksums, read_json, remove, write_checksums, write_json

KEPT = 2


@dataclass
class Snapshot:
    """A state read back, as it was written; the tensors are on the CPU."""

    path: Path
    tensors: dict[str, Tensor]
    values: dict[str, Any]

    @property
    def attachment(self) -> Path:
        """Where the folder lies that was kept with the state, if one was."""
        return self.path / "attachment"


def write_snapshot(
    folder: Path, tensors: dict[str, Tensor], values: dict[str, Any], attachment: Path | None = None
) -> Path:
    """Write a state into the folder of a run's states, whole or not at all, and remove all older ones but the last.

    `values` are what JSON can hold; `attachment` is a folder of finished files that are linked, not copied.
    """
    target = folder / str(max(_numbers(folder), default=0) + 1)
    with atomic_folder(target) as temporary:
        cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        (temporary / "tensors.safetensors").write_bytes(save(cpu))
        write_json(temporary / "values.json", values)
        if attachment is not None:
            link_folder(attachment, temporary / "attachment")
        write_checksums(temporary, sorted(path for path in temporary.rglob("*") if path.is_file()))
    for number in sorted(_numbers(folder))[:-KEPT]:
        shutil.rmtree(folder / str(number), ignore_errors=True)
    return target


def newest_snapshot(folder: Path) -> tuple[Path | None, list[str]]:
    """Find the newest whole state, put newer ones aside, and say of each why; InputError if none is whole."""
    skipped = {}
    for number in sorted(_numbers(folder), reverse=True):
        path = folder / str(number)
        try:
            check_checksums(path)
        except (InputError, OSError) as error:
            skipped[path] = f"skipped the saved state {path}: {error}"
            continue
        for damaged in skipped:  # under its number it would count among those that are kept
            remove(damaged.with_suffix(".damaged"))
            damaged.rename(damaged.with_suffix(".damaged"))
        return path, list(skipped.values())
    if skipped:
        raise InputError(f"no saved state is whole ({'; '.join(skipped.values())}); start anew with --overwrite")
    return None, []


def read_snapshot(path: Path) -> Snapshot:
    """Read a state that `newest_snapshot` found."""
    return Snapshot(path, load((path / "tensors.safetensors").read_bytes()), read_values(path))


def read_values(path: Path) -> dict[str, Any]:
    """Read the values alone of a state that `newest_snapshot` found."""
    return read_json(path / "values.json")


def _numbers(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.glob("*") if path.name.isdigit()]


def link_folder(folder: Path, target: Path) -> None:
    """Make `target` a copy of a folder by hard links, or by copies where the disk has no links.

    Files that are only ever replaced, never changed in place, stay as they are in the copy.
    """

    def link(file: str, copy: str) -> None:
        try:
            os.link(file, copy)
        except OSError:
            shutil.copyfile(file, copy)

    shutil.copytree(folder, target, copy_function=link)


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return what the optimizer has gathered for each parameter, named <parameter's index>.<name>."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, values in state.items() for name, tensor in values.items()}


def load_optimizer_(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under <prefix>/<name>."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def under_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of <prefix>/<name> by name."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}/")}
