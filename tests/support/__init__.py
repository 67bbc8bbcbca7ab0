"""What the tests share: servers, clients, browsers, frames, ports, and the applications that the servers run."""
