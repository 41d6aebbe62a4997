"""One model over several ranks: rank 0 schedules and samples, all of them compute each step together over MPI."""
