"""What carries messages between processes: one module for each broker."""
