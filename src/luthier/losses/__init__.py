"""Pure functions from log-probabilities to sums of losses."""
