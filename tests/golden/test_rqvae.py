"""The RQ-VAE against the reference code's numbers, for any case in the golden format."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import ROOT
from torch import Tensor
from torch.testing import assert_close

from data.interactions import load_interactions
from tokenizer.config import TokenizerConfig
from tokenizer.export import semantic_ids
from tokenizer.folder import sem_ids_file
from tokenizer.rqvae import RQVAE

CASE = Path(os.environ.get("MTGREC_GOLDEN") or ROOT.parent / "shared/golden/case_a")
STEPS = (slice(0, 32), slice(32, 64), slice(6, 38))
BETA, LEARNING_RATE = 0.25, 1e-3

pytestmark = pytest.mark.skipif(not CASE.is_dir(), reason=f"no golden case at {CASE}; set MTGREC_GOLDEN")


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(CASE / "rqvae.safetensors")


@pytest.fixture(scope="module")
def numbers() -> dict:
    return json.loads((CASE / "rqvae.json").read_text())


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def numbered(state: dict[str, Tensor], pattern: str) -> list[Tensor]:
    """Return the tensors whose names match, in the order of the number in the name."""
    found = {int(match[1]): value for name, value in state.items() if (match := re.fullmatch(pattern, name))}
    return [found[number] for number in sorted(found)]


def build(state: dict[str, Tensor], vq_type: str) -> RQVAE:
    """Build a model of the sizes that a state dict in the reference code's names has, and load it."""
    weights = numbered(state, r"encoder\.mlp\.(\d+)\.weight")
    codebooks = numbered(state, r"quantization_layer\.quantization_layers\.(\d+)\.embed(?:\.weight)?")
    model = RQVAE(weights[0].shape[1], list(map(len, weights)), list(map(len, codebooks)), 0.0, BETA, vq_type)
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("vq_type", ["ema", "vq"])
class TestRQVAE:
    def test_evaluation(self, tensors: dict[str, Tensor], numbers: dict, vq_type: str):
        model = build(part(tensors, f"{vq_type}/before/"), vq_type).eval()
        with torch.no_grad():
            output = model(tensors["input"])
        codes = tensors[f"{vq_type}/eval/codes"]
        assert torch.equal(output.codes, codes)
        assert torch.equal(model.encode(tensors["input"], chunk_size=7), codes)
        assert_close(output.reconstruction, tensors[f"{vq_type}/eval/reconstruction"], rtol=1e-4, atol=1e-5)
        expected = numbers[vq_type]
        assert output.quantization_loss.item() == pytest.approx(expected["eval_quant_loss"], rel=1e-4, abs=1e-5)
        assert output.reconstruction_loss.item() == pytest.approx(expected["eval_reconstruction_mse"], rel=1e-4)
        assert_close(model.state_dict(), part(tensors, f"{vq_type}/before/"), rtol=0, atol=0)

    def test_three_training_steps(self, tensors: dict[str, Tensor], numbers: dict, vq_type: str):
        model = build(part(tensors, f"{vq_type}/before/"), vq_type).train()
        optimizer = torch.optim.Adagrad(model.parameters(), lr=LEARNING_RATE)
        sizes = [len(layer.codebook) for layer in model.quantization_layer.quantization_layers]
        for rows, expected in zip(STEPS, numbers[vq_type]["train_steps_total_recon_quant_unused"], strict=True):
            output = model(tensors["input"][rows])
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            unused = sum(size - len(codes.unique()) for size, codes in zip(sizes, output.codes.T, strict=True))
            losses = [output.loss.item(), output.reconstruction_loss.item(), output.quantization_loss.item()]
            assert [*losses, unused] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        after = part(tensors, f"{vq_type}/after/")
        for name, value in model.state_dict().items():
            exact = name.endswith("cluster_size")
            assert_close(value, after[name], rtol=1e-6 if exact else 1e-4, atol=0 if exact else 1e-5)
        assert torch.equal(model.encode(tensors["input"]), tensors[f"{vq_type}/after_codes"])


def test_disambiguation_codes_and_file_names():
    folder = next(path for path in (CASE / "dataset").iterdir() if path.is_dir())
    encoder = next(folder.glob("*.sent_emb")).stem
    names = load_interactions(folder).item_names[1:]
    files = {int(file.stem.rsplit("_", 1)[1]): file for file in folder.glob("rqvae/*_*_*.sem_ids")}
    all_codes = np.load(CASE / "sem_ids_codes.npy")
    assert len(files) == len(all_codes)
    for epoch, codes in zip(sorted(files), all_codes, strict=True):
        sizes = list(map(int, files[epoch].stem.split("_")[-2].split(",")))
        config = TokenizerConfig(folder.name, str(folder.parent), sent_emb_model=f"any/{encoder}", codebook_size=sizes)
        config.n_codebooks = codes.shape[1]
        assert sem_ids_file(config, epoch) == files[epoch]
        ids = semantic_ids(codes, sizes[-1], str(epoch), names)
        assert json.loads(files[epoch].read_text()) == dict(zip(names, ids.tolist(), strict=True))
