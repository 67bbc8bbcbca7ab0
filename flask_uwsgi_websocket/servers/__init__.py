"""The WSGI servers, one file each: how it lends its sockets, how many requests it serves, how its process ends."""
