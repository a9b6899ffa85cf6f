"""Trust: keys, signatures, the statements they carry, and the manifests that carry them."""
