"""Volumes: the directory, its description, and how much of it is believed."""
