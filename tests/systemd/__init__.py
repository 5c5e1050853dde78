"""The units of conf/ under a systemd that really runs them."""
