"""The machine: files, memory, threads, forks; and types of arrays."""
