"""rows in, encoded examples out: catalog, readers, formats, encoding, mixing, cache."""
