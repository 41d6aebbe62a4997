"""The processes of an engine with several ranks: how they are started, how they watch each other, how they end.

    briton engine (the launcher, with the Hub) --mpiexec--> rank 0 (serves), rank 1, ... (follow), each with a Member

Ranks talk to each other over MPI, and to the hub over TCP: who is alive must not depend on what hangs. Knows
processes, sockets and clocks; no model.
"""
