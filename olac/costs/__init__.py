"""What primitives cost: the table, the amounts of work that it prices, and fits of measurements."""

from olac.costs.table import CostTable

__all__ = ["CostTable"]
