"""Policy: what an image must show before it counts as verified; evidence in, verdict out."""
