"""what a model knows: benchmarks of multiple choice, from files on this machine."""
