"""How the weights of a run are held by its processes."""
