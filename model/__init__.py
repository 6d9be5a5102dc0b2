"""The generative recommender and its beam search. Knows nothing of datasets."""

import utils  # noqa: F401  (before torch)
