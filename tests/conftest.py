"""What every test may use: the golden case, a tiny dataset, its tokenizers and a recommender for it, one thread."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hub_server import TOKEN, Hub, running_hub, use_hub
from safetensors.torch import load_file
from tiny_dataset import make_dataset
from tiny_runs import make_untrained_run

import model.packing
import model.t5_layers
from data.batching import Tokenization
from data.interactions import load_interactions
from data.token_table import Vocabulary, load_token_table, resolve_groups
from model.recommender import Architecture, Recommender, build_recommender

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # the same run on a machine with a GPU
ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)


class GoldenCase:
    """A folder of the reference code's inputs and outputs; sizes are read from its files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.dataset = next(path for path in (folder / "dataset").iterdir() if path.is_dir())
        self.recommender = load_file(folder / "recommender.safetensors")
        self.recommender_json = json.loads((folder / "recommender.json").read_text())

    def weights(self, prefix: str = "weights/") -> dict[str, torch.Tensor]:
        """Return the tensors whose names start with `prefix`, without it."""
        return {name.removeprefix(prefix): t for name, t in self.recommender.items() if name.startswith(prefix)}


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """Return the golden case's folder, from MTGREC_GOLDEN or beside the project."""
    folder = Path(os.environ.get("MTGREC_GOLDEN", ROOT.parent / "shared" / "golden" / "case_a"))
    if not folder.is_dir():
        pytest.skip(f"no golden case at {folder}; name one with MTGREC_GOLDEN")
    return folder


@pytest.fixture(scope="session")
def golden(golden_folder: Path) -> GoldenCase:
    return GoldenCase(golden_folder)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Return a tiny dataset folder, tmp_path/datasets/Tiny, with the tokenizers of epochs 1, 2, 3 (3 x 8 codes)."""
    return make_dataset(tmp_path / "datasets" / "Tiny")


@pytest.fixture
def joint_run(dataset: Path, tmp_path: Path) -> Path:
    """Return a run folder with an untrained recommender of the tiny dataset's tokenizers 1 and 2; 2 is the better."""
    return make_untrained_run(dataset, tmp_path / "runs" / "Tiny" / "joint")


@pytest.fixture(params=["packed", "padded", "fused"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How a batch is computed, in turn: a part for each length as on the CPU; one padded part and the normalisation as
    on a GPU; the same with fused attention.
    """
    if request.param != "packed":
        monkeypatch.setattr(model.packing, "PACKING_DEVICES", ())
        monkeypatch.setattr(model.t5_layers, "RMS_NORM_DEVICES", ("cpu",))
    if request.param == "fused":
        monkeypatch.setattr(model.t5_layers, "FUSED_ATTENTION_DEVICES", ("cpu",))


@pytest.fixture
def tokenization(dataset: Path) -> Tokenization:
    interactions = load_interactions(dataset)
    table = load_token_table(resolve_groups(dataset), interactions.item_names[1:], Vocabulary((8,) * 4))
    return Tokenization(interactions, table, max_item_seq_len=5)


@pytest.fixture
def recommender() -> Recommender:
    torch.manual_seed(0)
    architecture = Architecture((8,) * 4, 1, 1, 1, d_model=8, d_ff=12, num_heads=2, d_kv=4, dropout_rate=0.3)
    return build_recommender(architecture)


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a model hub, and be ann there, with a cache of her own."""
    with running_hub() as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        use_hub(server, tmp_path / "cache", monkeypatch)
        yield server
