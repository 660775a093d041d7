"""Backends: one circuit, run, simulated, priced or recorded."""
