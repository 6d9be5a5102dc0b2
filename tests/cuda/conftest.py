"""Tests on a GPU: python -m pytest tests/cuda. Without one they skip, and MTGREC_TEST_DEVICE=cpu rehearses them.

A rehearsal computes what is compared with the CPU as a GPU does: one padded part, the normalisation in one kernel.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import model.packing
import model.t5_layers
from data.batching import Tokenization
from tests.golden.conftest import GoldenWorld, train_steps, world  # noqa: F401  (fixtures)
from utils.runtime import seed_everything

DEVICE = os.environ.get("MTGREC_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "")
on_gpu_only = pytest.mark.skipif(DEVICE != "cuda", reason="a GPU's waits and memory are looked at")


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device under test, on which Accelerate computes too, though the other tests keep it on the CPU."""
    if not DEVICE:
        pytest.skip("there is no GPU; MTGREC_TEST_DEVICE=cpu rehearses")
    if DEVICE == "cuda":
        monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    AcceleratorState._reset_state(reset_partial_state=True)
    seed_everything(0)
    torch.set_float32_matmul_precision("highest")
    yield torch.device(DEVICE)
    seed_everything(0)
    AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Compute as a GPU does within, also in a rehearsal."""
    with (
        patch.object(model.packing, "PACKING_DEVICES", ()),
        patch.object(model.t5_layers, "RMS_NORM_DEVICES", (DEVICE,)),
    ):
        yield


@pytest.fixture
def accelerator(device: torch.device) -> Accelerator:
    found = Accelerator()
    assert found.device.type == device.type
    return found


@pytest.fixture
def golden_tokenization(world: GoldenWorld, device: torch.device) -> Tokenization:  # noqa: F811
    return Tokenization(world.interactions, world.table.to(device), world.tokenization.max_item_seq_len)
