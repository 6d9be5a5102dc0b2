"""Methods without semantic IDs, to be measured beside the generative ones: most popular, item-to-item, SASRec."""

import utils  # noqa: F401  (before torch)
