"""what `data check` and `data show` say of a data set."""
