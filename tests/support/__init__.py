"""Shared parts of the tests: servers, clients, browsers, frames, ports, and the applications that the servers run."""
