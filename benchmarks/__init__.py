"""Measurements: speed beside a plain reference way, growth with the data, how well a sample estimates influence."""

import utils  # noqa: F401  (before torch)
