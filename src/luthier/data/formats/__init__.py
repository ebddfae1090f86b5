"""rows of a kind of data set -> conversations, one file a formatting."""
