"""Fuzzing of the protocol, guided by coverage: `make fuzz`. See ``targets.py`` and ``__main__.py``."""
