"""What a process has around its connections: a housekeeper, a door, counters, an end."""
