"""The vector engine: residues as float64, multiplied by fused multiply-add in kernels that numba compiles."""
