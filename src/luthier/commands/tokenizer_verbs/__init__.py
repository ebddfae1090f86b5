"""what `luthier tokenizer` can do, one file for each word behind it."""
