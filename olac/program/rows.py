"""What a comparison of an encrypted run with a simulated one says of each layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        layer, op: the node's id and its op's name.
        level: levels that its ciphertexts have left.
        error: largest difference of a slot from its simulated value; NaN if a ciphertext does not decrypt.
        true_error: the same in true units.
        bits: precision, -log2 of the mean difference over the largest simulated value.
        largest: largest simulated |slot|; of a bootstrap, that of its operand.
        largest_encrypted: largest decrypted |slot|, those that hold no element included; of a bootstrap, that of its
            operand.
        outside: the number of simulated values with |slot| > 1; of the input, of those outside the calibrated range.
        seconds: wall time of the encrypted run.
    """

    layer: str
    op: str
    level: int
    error: float
    true_error: float
    bits: float
    largest: float
    largest_encrypted: float
    outside: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Outputs:
    """The outputs of an encrypted run compared with those of a simulated one.

    Attributes:
        images: their number.
        same: of how many the largest output is the same; None if there is one output, which decides nothing.
        mean_error, max_error: of the outputs before the head; NaN if they do not decrypt.
    """

    images: int
    same: int | None
    mean_error: float
    max_error: float


@dataclass(frozen=True)
class Comparison:
    """All rows of one comparison, in the order of the run, and its outputs."""

    rows: tuple[Row, ...]
    outputs: Outputs
