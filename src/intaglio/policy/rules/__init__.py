"""The rules: each a small function that says what it found, or raises what is wrong."""
