"""Processes: the supervisor and its children, the life of an engine process and of a rank, which executor runs."""
