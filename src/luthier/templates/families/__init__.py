"""one file per family of models: the texts that stand around their turns."""
