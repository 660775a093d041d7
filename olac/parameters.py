"""`olac.ckks.parameters` under its earlier name."""

from olac.ckks.parameters import Bootstrapping, Parameters

__all__ = ["Bootstrapping", "Parameters"]
