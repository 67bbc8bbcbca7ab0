"""`make bench`: this package and its peers, on the same machine in the same run.

    python -m benchmarks [--quick] [--servers NAME ...] [--measures NAME ...]

- ``servers.py``: how each server is started, and what its processes use.
- ``apps/``: the application that each of them serves.
- ``load.c``: the load generator.
- ``measures.py``: what is measured, and the run.
- ``report.py``: the comparisons, the tables, the plot, the page of the docs.

Scripts of their own:

- ``profile.py``: the system calls of a server for each message, and where its time goes.
- ``latency.py``: two sends in a row, and an echo beside thousands of idle connections.
- ``fairness.py``: how long a polite client waits beside others that flood its worker.
- ``idle.py``: idle connections behind uWSGI's router, for longer than its time limit.
- ``mixed.py``: ten minutes of mixed polite load: nothing lost, memory flat.
- ``soak.py``: half an hour of it with every fault at once (``make soak``).
"""
