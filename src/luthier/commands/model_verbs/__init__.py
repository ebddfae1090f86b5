"""what `luthier model` can do, one file for each word behind it."""
