"""The WSGI servers, one file each: how they lend sockets, how many requests they serve, how their processes end."""
