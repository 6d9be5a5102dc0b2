"""The documentation, and what generates a part of it."""

import utils  # noqa: F401  (before torch)
