"""Which examples go together, and the tensors they become."""
