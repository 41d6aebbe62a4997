"""A model over several ranks, started by a real mpiexec."""
