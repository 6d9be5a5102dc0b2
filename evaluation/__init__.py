"""Judging: predictions, metrics, results per user, comparisons, and reading runs."""

import utils  # noqa: F401  (before torch)
