"""The WebSocket protocol, RFC 6455 and RFC 7692: bytes in, messages out. No I/O, no Flask, no uWSGI."""
