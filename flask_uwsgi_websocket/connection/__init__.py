"""One connection: its socket, buffers and waits, its life in the application, and the clients that handlers get."""
