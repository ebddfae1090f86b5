"""Which weights learn: one file a method."""
