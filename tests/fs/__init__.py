"""Tests on a mount: what a plain directory does is what the mount must do."""
