import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tokenizer.quantizer import EMACodebook, ResidualQuantizer, nearest_codes


@pytest.fixture
def latent() -> Tensor:
    return torch.randn(50, 4, generator=torch.Generator().manual_seed(1))


def test_nearest_codes_and_ties():
    codebook = torch.tensor([[5.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    residual = torch.tensor([[0.9, 0.0], [-3.0, 0.0], [0.0, 7.0], [9.0, 0.0]])
    assert nearest_codes(residual, codebook).tolist() == [1, 3, 1, 0]


@pytest.mark.parametrize("vq_type", ["ema", "vq"])
def test_the_sum_of_the_codes_is_the_quantised_latent(latent: Tensor, vq_type: str):
    torch.manual_seed(0)
    quantizer = ResidualQuantizer([8, 6, 4], 4, vq_type=vq_type).eval()
    quantized, codes, _ = quantizer(latent)
    assert codes.shape == (50, 3)
    assert torch.equal(codes, quantizer.encode(latent))
    residual = latent
    for level, layer in enumerate(quantizer.quantization_layers):
        expected = torch.cdist(residual, layer.codebook).argmin(1)
        assert torch.equal(codes[:, level], expected)
        residual = residual - layer.codebook[expected]
    chosen = [layer.codebook[codes[:, level]] for level, layer in enumerate(quantizer.quantization_layers)]
    assert_close(sum(chosen), quantized)


def test_moving_average_equals_a_plain_loop(latent: Tensor):
    torch.manual_seed(0)
    book = EMACodebook(5, 4)
    book.cluster_size.copy_(torch.tensor([1e-4, 0.5, 1.0, 2.0, 3.0]))
    before = {name: value.clone() for name, value in book.named_buffers()}
    codes = nearest_codes(latent, book.codebook).clamp(max=3)  # code 4 stays unused
    book.update_(latent, codes)

    size = [0.99 * before["cluster_size"][k] + 0.01 * (codes == k).sum() for k in range(5)]
    total = sum(size)
    for k in range(5):
        average = 0.99 * before["embed_avg"][k]
        for row in latent[codes == k]:
            average = average + 0.01 * row
        smoothed = total * (size[k] + 1e-5) / (total + 5 * 1e-5)
        assert_close(book.cluster_size[k], size[k], rtol=1e-6, atol=0)
        assert_close(book.embed_avg[k], average)
        assert_close(book.embed[k], average / smoothed)


def test_the_step_uses_the_old_codebook_and_evaluation_moves_nothing(latent: Tensor):
    torch.manual_seed(0)
    quantizer = ResidualQuantizer([8, 6], 4)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    evaluated = quantizer.eval()(latent)
    assert_close(quantizer.state_dict(), before, rtol=0, atol=0)
    trained = quantizer.train()(latent)
    assert_close(trained, evaluated, rtol=0, atol=0)
    assert not torch.equal(quantizer.quantization_layers[0].embed, before["quantization_layers.0.embed"])


@pytest.mark.parametrize("vq_type", ["ema", "vq"])
def test_gradients(latent: Tensor, vq_type: str):
    """The latent gets the decoder's gradient and level 0's commitment term; a codebook only its own term."""
    torch.manual_seed(0)
    beta, levels = 0.25, 3
    quantizer = ResidualQuantizer([8] * levels, 4, beta, vq_type).eval()
    latent.requires_grad_()
    quantized, codes, loss = quantizer(latent)
    (quantized.sum() + loss).backward()
    books = [layer.codebook.detach() for layer in quantizer.quantization_layers]
    commitment = 2 * beta * (latent - books[0][codes[:, 0]]) / latent.numel() / levels
    assert_close(latent.grad, 1 + commitment.detach())
    if vq_type == "vq":
        residual = latent.detach()
        for level, layer in enumerate(quantizer.quantization_layers):
            chosen = codes[:, level]
            term = 2 * (books[level][chosen] - residual) / latent.numel() / levels
            assert_close(layer.codebook.grad, torch.zeros(8, 4).index_add(0, chosen, term))
            residual = residual - books[level][chosen]


@pytest.mark.parametrize("vq_type", ["ema", "vq"])
def test_codes_without_items_take_the_place_of_residuals(latent: Tensor, vq_type: str):
    """Level 0 has two codes far from all, which one step more lets die; codes used now and codes not yet due stay."""
    torch.manual_seed(0)
    quantizer = ResidualQuantizer([8, 6], 4, vq_type=vq_type)
    first, last = quantizer.quantization_layers
    first.initialize_(torch.cat([torch.full((2, 4), 99.0), torch.randn(6, 4)]))
    before = [book.detach().clone() for book in quantizer.codebooks]
    codes = quantizer.encode(latent)
    unused = [torch.tensor([4, 3, 9, 9, 9, 9, 9, 9]), torch.zeros(6, dtype=torch.int64)]
    torch.manual_seed(1)
    quantizer.revive_(latent, codes, unused, steps=5)
    torch.manual_seed(1)
    row = torch.randperm(50)[0]
    assert_close(first.codebook[0], latent[row], rtol=0, atol=0)
    assert_close(first.codebook[1:], before[0][1:], rtol=0, atol=0)
    assert_close(last.codebook, before[1], rtol=0, atol=0)
    assert unused[0].tolist() == [0, 4, *(0 if k in codes[:, 0] else 10 for k in range(2, 8))]
    assert unused[1].tolist() == [int(k not in codes[:, 1]) for k in range(6)]
    if vq_type == "ema":
        assert torch.equal(first.embed_avg[0], first.embed[0])
        assert first.cluster_size[0] == 1
    quantizer.revive_(latent, codes, unused, steps=5)  # the second level's residuals are what the first leaves
    residual = latent - first.codebook[codes[:, 0]]
    unused[1].fill_(4)
    quantizer.revive_(latent, codes, unused, steps=5)
    for k in range(6):
        if k not in codes[:, 1]:
            assert (residual == last.codebook[k]).all(dim=1).any()


@pytest.mark.parametrize("vq_type", ["ema", "vq"])
def test_no_two_codes_take_the_place_of_one_residual(latent: Tensor, vq_type: str):
    """Of more dead codes than the batch has items, the rest wait for the next batch."""
    torch.manual_seed(0)
    quantizer = ResidualQuantizer([20], 4, vq_type=vq_type)
    (layer,) = quantizer.quantization_layers
    layer.initialize_(torch.cat([torch.full((17, 4), 99.0), torch.randn(3, 4)]))
    batch = latent[:5].detach()
    codes, unused = quantizer.encode(batch), [torch.full((20,), 7)]
    quantizer.revive_(batch, codes, unused, steps=5)
    assert_close(layer.codebook[:5].sort(dim=0).values, batch.sort(dim=0).values, rtol=0, atol=0)
    assert_close(layer.codebook[5:17], torch.full((12, 4), 99.0), rtol=0, atol=0)
    assert unused[0][:17].tolist() == [0] * 5 + [8] * 12
