"""What certain versions and files do wrong, mended until the day named beside it."""
