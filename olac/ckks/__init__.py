"""What the scheme is: parameters, primes, security, rotation steps, bootstraps and the sizes of objects."""
