"""Rooms: messages from anywhere to many connections, across workers and machines."""
