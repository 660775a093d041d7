"""Fits that look at whole images: in network order, with re-fitted weights, and what each choice does to the outputs.

This is the part of approximation that runs in torch; passes reach it as `PassContext.images`.
"""

from olac.approximation.engine import ImageFitter

__all__ = ["ImageFitter"]
