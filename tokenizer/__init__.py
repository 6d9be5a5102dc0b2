"""From item texts to semantic IDs: embeddings, RQ-VAE, one tokenizer per kept epoch (paper section 2.2)."""

import utils  # noqa: F401  (before torch)
