"""`make bench`: this package and comparable servers, on the same machine in the same run.

    python -m benchmarks [--quick] [--servers NAME ...] [--measures NAME ...]

- ``servers.py``: the command of each server, and the CPU time and memory of its processes.
- ``apps/``: the application that each server runs.
- ``load.c``: the load generator.
- ``calls.c``: counts the system calls of a server.
- ``measures.py``: the measures, and the run. The ones of rooms, idle loops and many parked connections are in
  ``rooms.py``, ``latency.py`` and ``parked.py``.
- ``report.py``: the comparisons, the tables, the plot, the page of the docs.

Separate scripts:

- ``profile.py``: the system calls of a server for each message, and the functions that take its time.
- ``latency.py``: two sends in a row, and an echo beside thousands of idle connections.
- ``fairness.py``: the waits of a polite client beside other clients that flood its worker.
- ``idle.py``: idle connections behind uWSGI's router, for longer than its time limit.
- ``parked.py``: tens of thousands of parked connections on one worker, and the plot of memory.
- ``mixed.py``: ten minutes of mixed polite load, which must lose nothing and leave the memory flat.
- ``soak.py``: half an hour of the same with every fault at the same time (``make soak``).
"""
