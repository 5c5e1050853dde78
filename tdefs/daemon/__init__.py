"""One mount from its beginning to its end: session, signals, control socket, watchdog."""
