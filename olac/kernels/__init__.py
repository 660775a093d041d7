"""Kernels: how each op is evaluated on ciphertexts, written once against `olac.backends.base.Evaluator`."""
