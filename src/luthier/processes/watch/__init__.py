"""Ranks that look after each other: none waits for one that is lost."""
