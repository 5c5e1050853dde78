"""What a volume is: its directory, what it says of itself, and what is believed of it."""
