"""Rows that are read, encoded and used up as training goes, never all of them at once."""
