"""single rows shown from the file to the tokens, as training sees them."""
