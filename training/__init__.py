"""The training loop and the curriculum over tokenizers."""
