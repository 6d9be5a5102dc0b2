from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tokenizer.config import TokenizerConfig
from tokenizer.rqvae import RQVAE, encoding_state, load_weights, mlp, save_weights
from tokenizer.rqvae_training import build_model
from utils.errors import InputError


def build(seed: int = 0, **changes: object) -> RQVAE:
    torch.manual_seed(seed)
    sizes = {"input_size": 6, "hidden_sizes": [8, 4], "codebook_sizes": [5, 3]} | changes
    return RQVAE(**sizes)


def test_mlp_has_no_activation_after_the_last_layer():
    torch.manual_seed(0)
    layers = mlp([3, 5, 4, 2])
    assert [name for name, _ in layers.named_parameters() if name.endswith("weight")] == [
        f"mlp.{number}.weight" for number in (1, 4, 7)
    ]
    torch.nn.init.constant_(layers.mlp[7].bias, -1)
    x = torch.randn(10, 3)
    expected = layers.mlp[7](layers.mlp[4](layers.mlp[1](x).relu()).relu())
    assert_close(layers(x), expected)
    assert (expected < 0).any()


def test_encode_needs_no_eval_mode_and_any_chunk_size_gives_the_same():
    model, x = build(dropout=0.5).train(), torch.randn(20, 6)
    codes = model.encode(x)
    assert model.training
    assert torch.equal(codes, model.encode(x, chunk_size=3))
    assert torch.equal(codes, model.eval()(x).codes)


def test_loss_is_reconstruction_plus_quantisation():
    model, x = build().eval(), torch.randn(20, 6)
    output = model(x)
    assert_close(output.reconstruction_loss, (output.reconstruction - x).square().mean())
    assert_close(output.loss, output.reconstruction_loss + output.quantization_loss)


@pytest.mark.parametrize("vq_type", ["ema", "vq"])
def test_kept_weights_encode_like_the_whole_model(tmp_path: Path, vq_type: str):
    model, other, x = build(0, vq_type=vq_type), build(1, vq_type=vq_type), torch.randn(30, 6)
    save_weights(tmp_path / "1.safetensors", encoding_state(model), epoch=1)
    load_weights(other, tmp_path / "1.safetensors")
    assert torch.equal(other.encode(x), model.encode(x))
    assert {name.split(".")[0] for name in encoding_state(model)} == {"encoder", "quantization_layer"}


def test_a_kept_epoch_of_the_papers_sizes_takes_at_most_13_mb():
    state = encoding_state(build_model(TokenizerConfig(dataset="A")))
    assert sum(value.numel() * value.element_size() for value in state.values()) <= 13e6


def test_unusable_weights_are_refused(tmp_path: Path):
    file = tmp_path / "1.safetensors"
    with pytest.raises(InputError, match="does not exist"):
        load_weights(build(), file)
    save_weights(file, encoding_state(build()))
    with pytest.raises(InputError, match="does not fit the settings"):
        load_weights(build(codebook_sizes=[5, 4]), file)
    with pytest.raises(InputError, match="tensors missing"):
        load_weights(build(vq_type="vq"), file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_weights(build(), file)
