"""An engine whose residues are float64, multiplied by fused multiply-add in kernels that numba compiles."""
