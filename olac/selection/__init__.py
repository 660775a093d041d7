"""The choice of CKKS parameters for a program."""
