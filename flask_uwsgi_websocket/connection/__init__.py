"""One connection: its socket and buffers, its waits, its life in the application, and what handlers get."""
