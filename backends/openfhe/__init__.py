"""The real backend, and the only package that imports openfhe."""
