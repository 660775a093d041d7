"""The diagonals of placed entries, found by sorting all of them."""

import numpy as np

from olac.kernels.linear import Distinct, PlacedEntries


def distinct(entries: PlacedEntries) -> Distinct:
    """Target, source and number of each diagonal that is not zero, each once and in this order of significance."""
    target, source, diagonal = np.unique(np.stack([entries.target, entries.source, entries.diagonal]), axis=1)
    return target, source, diagonal
