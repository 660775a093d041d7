"""Questions about graphs: levels, depth, bootstraps, units, noise, time and memory. Nothing here rewrites."""
