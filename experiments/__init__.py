"""Studies: matrices of variants, settings and seeds, run through the same entry points that people type."""

import utils  # noqa: F401  (before torch)
