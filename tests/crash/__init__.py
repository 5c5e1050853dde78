"""Attempts to lose an acknowledged commit: kills, power cuts, failing calls, damage, stops at a bad time."""
