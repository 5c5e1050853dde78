"""What is open: reading, writing, durability, and the system calls on the backing directory."""
