"""A trained model answers: on the terminal and for other programs."""
