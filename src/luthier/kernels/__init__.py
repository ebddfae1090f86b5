"""Arithmetic that torch has only in parts: small, and tested against the plain form."""
