"""Bootstraps of the vector engine: slots go to coefficients, the modulus is raised, and a sine reduces them."""
