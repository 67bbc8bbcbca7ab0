"""What a process has around its connections: a housekeeper, an admission limit, counters, a shutdown."""
