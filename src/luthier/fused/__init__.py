"""layers of a model in fewer passes, put before its own where both give the same."""
