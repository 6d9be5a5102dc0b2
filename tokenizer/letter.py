"""LETTER: an RQ-VAE whose latents follow collaborative embeddings, and whose codewords spread out.

Source: "Learnable Item Tokenization for Generative Recommendation", CIKM 2024, arXiv 2405.07314. Differs from it in the
start, which is the plain k-means of every RQ-VAE here, and in the groups of codewords, whose sizes are equal instead of
bounded. Its Sinkhorn assignment at the last level is --balance=sinkhorn.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.spatial.distance import cdist
from sklearn.decomposition import TruncatedSVD
from torch import Tensor

from data.interactions import Interactions, load_interactions, training_part
from tokenizer.config import TokenizerConfig
from tokenizer.rqvae import RQVAE, RQVAEOutput
from tokenizer.rqvae_training import BatchTerms, ExtraLoss, RQVAETokenizer
from utils.errors import InputError
from utils.runtime import choose_device

SVD = "svd"
GROUPS = 10  # of codewords
ITERATIONS = 10  # of the k-means that makes them


class Letter(RQVAETokenizer):
    """An RQ-VAE with the alignment and the diversity loss."""

    title, flags = "LETTER", (*RQVAETokenizer.flags, "cf_emb", "cf_weight", "diversity_weight")

    @classmethod
    def problems(cls, config: TokenizerConfig) -> list[str]:
        """Name codebooks that the diversity loss could not move."""
        moved = config.vq_type == "vq"
        return [] if moved else ["--kind=letter has codebooks that follow a gradient; give --vq_type=vq"]

    @classmethod
    def sources(cls, config: TokenizerConfig) -> dict[str, str]:
        """Return the hash of the file's embeddings, or of what the SVD is made from.

        The last bits of the SVD itself depend on the machine.
        """
        if config.cf_emb == SVD:
            training = training_part(load_interactions(config.folder))
            content = training.items.tobytes() + training.offsets.tobytes()
        else:
            content = collaborative_embeddings(config).tobytes()
        return {"cf_emb_sha256": hashlib.sha256(content).hexdigest()}

    @classmethod
    def extra_loss(cls, config: TokenizerConfig, items: np.ndarray) -> ExtraLoss:
        """Return both losses; the codewords are grouped anew at every epoch's start."""
        embeddings = torch.from_numpy(collaborative_embeddings(config)[items - 1]).to(choose_device(config.device))

        def begin_epoch(model: RQVAE) -> BatchTerms:
            layer = model.quantization_layer
            groups = [balanced_groups(book.detach().cpu().numpy(), config.rand_seed) for book in layer.codebooks]
            groups = [torch.from_numpy(group).to(embeddings.device) for group in groups]

            def terms(output: RQVAEOutput, rows: Tensor) -> dict[str, Tensor]:
                levels = zip(layer.codebooks, output.codes.T, groups, strict=True)
                diversity = [diversity_loss(book, codes, draw_positives(codes, group)) for book, codes, group in levels]
                return {
                    "alignment": config.cf_weight * alignment_loss(output.quantized, embeddings[rows]),
                    "diversity": config.diversity_weight * torch.stack(diversity).mean(),
                }

            return terms

        return begin_epoch


def alignment_loss(quantized: Tensor, embeddings: Tensor) -> Tensor:
    """Return the cross-entropy of telling each item's collaborative embedding from those of the batch.

    Source: arXiv 2405.07314, collaborative regularisation. Takes the quantised latents and the embeddings, both float
    [B, D], row by row of the same items; returns the mean over the items.
    """
    return F.cross_entropy(quantized @ embeddings.T, torch.arange(len(quantized), device=quantized.device))


def diversity_loss(codebook: Tensor, codes: Tensor, positives: Tensor) -> Tensor:
    """Return the cross-entropy of telling a codeword of an item's group from all but the item's own.

    Source: arXiv 2405.07314, diversity regularisation.

    Args:
        codebook: float [K, D].
        codes: int64 [B], 0-based, the items' own.
        positives: int64 [B], another code of the same group for each.

    Returns:
        The mean over the items.
    """
    scores = codebook[codes] @ codebook.T
    return F.cross_entropy(scores.scatter(1, codes.unsqueeze(1), -torch.inf), positives)


def draw_positives(codes: Tensor, groups: Tensor) -> Tensor:
    """Draw, for codes int64 [B], others of the same groups, int64 [K]: int64 [B].

    As torch's multinomial draws one, but without its checks, for which the host would wait for a GPU.
    """
    others = (groups == groups.unsqueeze(1)).float().fill_diagonal_(0)[codes]  # [B, K]
    return (others / torch.empty_like(others).exponential_()).argmax(dim=1)


def balanced_groups(points: np.ndarray, seed: int) -> np.ndarray:
    """Group points, float [K, D], by k-means with equal sizes: int64 [K], 0-based.

    Each of the 10 groups, or fewer so that none has one point alone, has the same number of places, or one more; an
    iteration gives every point a place so that the sum of squared distances to the groups' means is the least.
    """
    count = min(GROUPS, max(1, len(points) // 2))
    places = np.arange(len(points)) % count  # the group of each place
    groups = np.random.default_rng(seed).permutation(places)
    for _ in range(ITERATIONS):
        before, centers = groups, np.stack([points[groups == group].mean(axis=0) for group in range(count)])
        _, chosen = linear_sum_assignment(cdist(points, centers, "sqeuclidean")[:, places])
        groups = places[chosen]
        if (groups == before).all():
            break
    return groups


def collaborative_embeddings(config: TokenizerConfig) -> np.ndarray:
    """Read --cf_emb, or make it: float32 [N, D], row i = item id i + 1; raise InputError where it does not fit."""
    interactions, size = load_interactions(config.folder), config.hidden_sizes[-1]
    if config.cf_emb == SVD:
        return svd_embeddings(interactions, size, config.rand_seed)
    file, shape = Path(config.cf_emb), (interactions.num_items, size)
    try:
        found = np.load(file) if file.suffix == ".npy" else np.fromfile(file, dtype="<f4")
    except (OSError, ValueError) as error:
        raise InputError(f"--cf_emb={file} cannot be read: {error}") from None
    if found.shape not in (shape, (shape[0] * shape[1],)):
        has = " x ".join(map(str, found.shape))
        raise InputError(
            f"--cf_emb={file} has {has} numbers, not {shape[0]} items x {size} dimensions; the dimensions must be the "
            "codebooks', the last of --hidden_sizes"
        )
    if not np.isfinite(found).all():
        raise InputError(f"--cf_emb={file} has numbers that are not finite")
    return np.ascontiguousarray(found.reshape(shape), dtype=np.float32)


def svd_embeddings(interactions: Interactions, size: int, seed: int) -> np.ndarray:
    """Return the items' side of the truncated SVD of the user-item matrix of the training part: float32 [N, size].

    Directions are weighted by the roots of their singular values, and all is scaled so that the mean squared norm of
    the items is 1. Items that occur in no training sequence are at 0. Raises InputError where there are too few users
    or items.
    """
    training = training_part(interactions)
    items, users = training.items - 1, training.users_of(np.arange(len(training.items)))
    shape = (interactions.num_users, interactions.num_items)
    if size >= min(shape):
        raise InputError(f"--cf_emb={SVD}: {shape[0]} users and {shape[1]} items have no {size} directions")
    matrix = csr_array((np.ones(len(items)), (users, items)), shape=shape)
    matrix.data[:] = 1  # however often a user had an item
    svd = TruncatedSVD(size, algorithm="arpack", random_state=seed).fit(matrix)
    embeddings = svd.components_.T * np.sqrt(svd.singular_values_)
    embeddings /= np.sqrt(np.square(embeddings).sum(axis=1).mean())
    return np.ascontiguousarray(embeddings, dtype=np.float32)
