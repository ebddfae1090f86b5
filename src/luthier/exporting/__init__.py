"""A trained model as other programs load it: merged, proven, published whole."""
