"""Content: descriptors, trees, and the store that keeps them."""
