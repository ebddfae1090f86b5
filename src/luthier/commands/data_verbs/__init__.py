"""what `luthier data` can do, one file for each word behind it."""
