"""Keys with fewer special primes, made from keys with more.

A key that reaches far up the chain has a large P, which its largest digit needs. For few limbs a small one does, and
everything that is computed with the key has fewer limbs. For P = P' D with the special primes that are left out in D,

    b = -a s + e + P s' [limb in digit]    modulo Q P

is divided by D, rounded: b / D = -(a / D) s + e / D + r + P' s' [limb in digit] modulo Q P', where r comes from the
rounding of both polynomials. It has a standard deviation of sqrt((h + 1) / 12) for a secret of h coefficients: 4 for
the 192 of secrets with bootstraps, where e had 3.24. Nothing secret is needed, so servers do this on their own.
"""

from __future__ import annotations

import math

import numpy as np

from olac.backends.vector.evaluator import NO_ORDER, VectorEvaluator
from olac.backends.vector.packed import PackedKey
from olac.backends.vector.switching import divide_limbs
from olac.ckks.special import KeyShape


def shortened(evaluator: VectorEvaluator, key: PackedKey, shape: KeyShape) -> PackedKey:
    """The same key for fewer limbs and fewer special primes.

    Args:
        evaluator: of the key's ring, for its kernels.
        shape: of the result, with digits of as many limbs.
    """
    r, n, old = evaluator.ring, evaluator.ring.N, key.shape
    assert shape.limbs <= old.limbs and shape.digits <= old.digits and shape.specials < old.specials
    kept = r.ids(shape.limbs, shape.specials)
    dropped = r.limbs + np.arange(shape.specials, old.specials)
    limbs = [*range(shape.limbs), *range(old.limbs, old.limbs + old.specials)]
    constants = r.conversion(tuple(dropped), tuple(kept))
    divisor = math.prod(r.primes[j] for j in dropped)
    inverses = np.concatenate([r.residues(pow(divisor, -1, r.primes[j]), [j]) for j in kept])
    source, y = evaluator.buffers.take(len(limbs) * n), evaluator.buffers.take(len(dropped) * n)
    rest, out = evaluator.buffers.take(len(kept) * n), evaluator.buffers.take(len(kept) * n)
    at, last = np.arange(len(kept)) * n, (len(kept) + np.arange(len(dropped))) * n
    none = np.full(len(kept), -1)
    made = PackedKey(r, shape)
    for digit in range(shape.digits):
        for half in range(2):
            for place, limb in enumerate(limbs):
                source.data[place * n : (place + 1) * n] = key.values(digit, half, limb)
            evaluator.inverse(source.data, last, y.data, np.arange(len(dropped)) * n, dropped, constants.factors)
            evaluator.convert(y.data, 0, len(dropped), constants, rest.data, at, exact=len(dropped) > 1)
            evaluator._run(
                divide_limbs,
                len(kept),
                source.data,
                at,
                rest.data,
                at,
                source.data,
                none,
                out.data,
                at,
                kept,
                inverses,
                NO_ORDER,
                False,
                r.R,
                r.C,
                r.w1,
                r.p,
                r.pinv,
                r.tight,
            )
            for place, j in enumerate(kept):
                found = out.data[place * n : (place + 1) * n]
                made.put_values(digit, half, place, found - np.rint(found * r.pinv[j]) * r.p[j])
    return made
