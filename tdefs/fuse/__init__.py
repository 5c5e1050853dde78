"""The kernel's side: the request loop, the operations and the replies."""
