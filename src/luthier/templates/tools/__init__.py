"""one file per way of telling a model its tools and of writing their calls."""
