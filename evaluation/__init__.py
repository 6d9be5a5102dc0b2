"""Judging: predictions, metrics, results per user, comparisons, and reading runs."""
