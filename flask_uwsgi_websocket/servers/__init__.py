"""The WSGI servers, one module for each: how it lends the socket of a request, how many it serves, how it ends."""
