"""A trained recommender at work: model folders and recommendations."""

import utils  # noqa: F401  (before torch)
