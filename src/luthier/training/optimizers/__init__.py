"""Optimizers, and how parameters are grouped for them."""
