"""How threads, greenlets and tasks wait: one module for each concurrency mode. Nothing here knows WebSockets."""
