from itertools import pairwise

import numpy as np
import pytest
import torch

from tokenizer.neighbours import estimated_codebooks, neighbour_codes
from tokenizer.quality import share_differing
from tokenizer.quantizer import ResidualQuantizer, nearest_codes

NUM_ITEMS, SIZES = 300, (4, 16, 16)


@pytest.fixture(scope="module")
def quantised() -> tuple[torch.Tensor, list[torch.Tensor], np.ndarray]:
    """Return latents, codebooks and the codes that quantise them."""
    torch.manual_seed(0)
    latents = torch.randn(NUM_ITEMS, 6)
    quantizer = ResidualQuantizer(SIZES, 6)
    residual = latents
    for layer in quantizer.quantization_layers:
        layer.initialize_(residual[torch.randperm(NUM_ITEMS)[: len(layer.codebook)]])
        residual = residual - layer.codebook[nearest_codes(residual, layer.codebook)]
    codebooks = [layer.codebook for layer in quantizer.quantization_layers]
    return latents, codebooks, quantizer.encode(latents).numpy()


@pytest.mark.parametrize("drift", [0.1, 0.5])
def test_the_ends_differ_as_asked_and_the_middle_is_the_given_tokenizer(quantised, drift):
    found = neighbour_codes(*quantised, num_tokenizers=7, drift=drift, seed=1)
    codes = quantised[2]
    np.testing.assert_array_equal(found[3], codes)
    np.testing.assert_array_equal(found[:, :, 0], np.broadcast_to(codes[:, 0], (7, NUM_ITEMS)))  # the first level stays
    assert share_differing(found[0], found[-1]) == pytest.approx(drift, abs=0.03)
    from_middle = [share_differing(codes, other) for other in found]
    assert from_middle[:4] == sorted(from_middle[:4], reverse=True)
    assert from_middle[3:] == sorted(from_middle[3:])
    assert from_middle[1] == pytest.approx(from_middle[0] * 2 / 3, abs=0.03)  # evenly from the middle to the end


def test_a_walk_goes_back_little(quantised):
    found = neighbour_codes(*quantised, num_tokenizers=7, drift=0.5, seed=1)
    steps = [share_differing(*pair) for pair in pairwise(found)]
    assert max(steps) < 0.25
    mean = [np.mean([share_differing(one, other) for other in found]) for one in found]
    assert max(mean[2:5]) < min(mean[0], mean[6])  # the middle is close to all others


def test_drawn_codewords_are_near(quantised):
    latents, codebooks, codes = quantised

    def error(chosen: np.ndarray) -> float:
        words = sum(codebook[chosen[:, level]] for level, codebook in enumerate(codebooks))
        return float((latents - words).square().sum(1).mean())

    found = neighbour_codes(*quantised, num_tokenizers=3, drift=0.5, seed=1)
    anything = np.column_stack([codes[:, 0], np.random.default_rng(0).integers(0, 16, (NUM_ITEMS, 2))])
    assert error(codes) < error(found[0]) < error(codes) + 0.5 * (error(anything) - error(codes))


def test_the_seed_decides(quantised):
    first, again, other = (neighbour_codes(*quantised, num_tokenizers=3, drift=0.3, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_no_drift_is_the_tokenizer_itself(quantised):
    found = neighbour_codes(*quantised, num_tokenizers=5, drift=0.0, seed=1)
    np.testing.assert_array_equal(found, np.broadcast_to(quantised[2], found.shape))


def test_no_drift_is_the_tokenizer_itself_where_two_codewords_are_equal():
    codebook = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    codes = torch.arange(4).repeat(5).unsqueeze(1).numpy()
    found = neighbour_codes(
        codebook.repeat(5, 1), [codebook], codes, num_tokenizers=3, drift=0.0, seed=1, kept_levels=0
    )
    np.testing.assert_array_equal(found, np.broadcast_to(codes, found.shape))


def test_a_level_with_one_code_keeps_it_and_the_next_one_drifts(quantised):
    latents, _, codes = quantised
    codes = np.stack([codes[:, 0], np.full(NUM_ITEMS, 5), codes[:, 2]], 1)
    codebooks = estimated_codebooks(latents.numpy(), codes, SIZES)
    found = neighbour_codes(latents, codebooks, codes, num_tokenizers=5, drift=0.4, seed=1)
    assert (found[:, :, 1] == 5).all()
    assert share_differing(found[0], found[-1]) == pytest.approx(0.4, abs=0.01)
    used = [set(level) for level in codes.T]
    assert all(set(level) <= there for tokenizer in found for level, there in zip(tokenizer.T, used, strict=True))


def test_a_drift_that_cannot_be_had_is_named(quantised):
    with pytest.raises(ValueError, match=r"at most \d+\.\d% of the items change, 100.0% are wanted"):
        neighbour_codes(*quantised, num_tokenizers=3, drift=1.0, seed=1, kept_levels=3)


def test_estimated_codewords_are_the_means_of_what_is_left():
    embeddings = np.array([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0]], dtype=np.float32)
    codes = np.array([[0, 0], [0, 1], [2, 1]])
    first, second = estimated_codebooks(embeddings, codes, (3, 2))
    assert first.tolist() == [[1.0, 0.0], [torch.inf, torch.inf], [9.0, 9.0]]
    assert second.tolist() == [[-1.0, 0.0], [0.5, 0.0]]


def test_a_code_that_is_not_the_nearest_stays_in_the_middle_and_may_go_to_the_nearest():
    codebook = torch.tensor([[0.0], [1.0], [5.0]])
    latents, codes = torch.full((200, 1), 0.1), np.ones((200, 1), dtype=np.int64)  # 0 is nearer than their code
    found = neighbour_codes(latents, [codebook], codes, num_tokenizers=3, drift=0.5, seed=1, kept_levels=0)
    assert (found[1] == 1).all()
    assert set(found[0].flat) == {0, 1}
