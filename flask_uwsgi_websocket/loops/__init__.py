"""How threads, greenlets and tasks wait: a module for each concurrency mode. Nothing here knows about WebSockets."""
