"""K-means for the start of an RQ-VAE and for residual k-means: the same seed gives the same centres."""

from functools import partial

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits

_MANY = 50_000  # from so many points on, each step looks at a sample of them


def fit_kmeans(points: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the centres, float [size, D], and each point's centre, int64 [N], 0-based, of points float [N, D].

    Differs from the reference code: of more than 50,000 points each step takes a batch, not all.
    """
    with threadpool_limits(1, user_api="openmp"):  # in one thread, sums have one order
        kind = KMeans if len(points) <= _MANY else partial(MiniBatchKMeans, batch_size=2**14)
        kmeans = kind(size, n_init="auto", random_state=seed).fit(points)
    return kmeans.cluster_centers_, kmeans.labels_.astype(np.int64)
