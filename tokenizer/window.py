"""How far apart the tokenizers of a training are: a window of its last epochs, as wide as the asked drift.

From one epoch to the next a few items change some code, and the further apart two epochs are, the more items differ
(paper, Table 5). How fast depends on the data, the network and the length of training. So the weights of some of the
last epochs are kept, at several strides, and the stride is chosen when training is finished.
"""

from collections.abc import Callable

import numpy as np

from tokenizer.quality import share_differing


def strides(epochs: int, num_tokenizers: int) -> list[int]:
    """Return the distances that neighbours among the tokenizers may have, in epochs, in rising order.

    Each is about 1.4 times the one before; the widest window is the last half of the training.
    """
    widest = max(1, epochs // 2 // (num_tokenizers - 1))
    found = {round(2 ** (half / 2)) for half in range(2 * widest.bit_length())}
    return sorted(stride for stride in found if stride <= widest)


def evenly_spaced(epochs: int, num_tokenizers: int, stride: int) -> list[int]:
    """Return the 1-based epochs of a window that ends with the last epoch, in rising order."""
    return [epoch for epoch in range(epochs - stride * (num_tokenizers - 1), epochs + 1, stride) if epoch >= 1]


def choose_epochs(codes: Callable[[int], np.ndarray], epochs: int, num_tokenizers: int, drift: float) -> list[int]:
    """Return the evenly spaced epochs of which the first and the last differ in the share of items nearest to `drift`.

    Args:
        codes: Gives an epoch's codes, int [N, H], 0-based.
        epochs: The last epoch, 1-based.
        num_tokenizers: How many tokenizers, at least 2.
        drift: Share of the items that differ in any token, disambiguation included.
    """
    windows = [evenly_spaced(epochs, num_tokenizers, stride) for stride in strides(epochs, num_tokenizers)]
    last = codes(epochs)
    return min(windows, key=lambda window: abs(share_differing(codes(window[0]), last) - drift))
