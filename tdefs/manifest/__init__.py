"""What lies in a volume when it is at rest, written down under a MAC, and compared with what is found later."""
