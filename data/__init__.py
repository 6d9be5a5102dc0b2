"""Datasets: item sequences, splits, token tables and batches."""
