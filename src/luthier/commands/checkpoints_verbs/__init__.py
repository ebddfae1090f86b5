"""what `luthier checkpoints` can do, one file for each word behind it."""
