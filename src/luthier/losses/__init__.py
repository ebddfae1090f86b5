"""Losses as pure functions of what was read of sequences, and the table of their names."""
