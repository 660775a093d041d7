"""Univariate functions, their polynomial fits, and how polynomials are evaluated at minimal depth."""
