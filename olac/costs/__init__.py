"""What primitives cost: the table, the work behind it, and fits of measurements."""

from olac.costs.table import CostTable

__all__ = ["CostTable"]
