"""The training loop and the curriculum over tokenizers."""

import utils  # noqa: F401  (before torch)
