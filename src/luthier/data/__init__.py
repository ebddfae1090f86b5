"""rows in, encoded examples out: dataset_info.json, files, formats, encoding, mixing, cache."""
