"""Datasets: item sequences, splits, token tables and batches."""

import utils  # noqa: F401  (before torch)
