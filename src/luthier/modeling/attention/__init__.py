"""A token tree's attention: which tokens see which, and the kernels that compute it."""
