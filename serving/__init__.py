"""A model that answers over HTTP, and a page to try it."""

import utils  # noqa: F401  (before torch)
