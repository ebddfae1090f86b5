"""Kinds of data files, one file each: their rows from any position on, with file and line."""
