"""The machine: files, memory, threads, forks."""
