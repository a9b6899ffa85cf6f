"""What a model's files may be: each format read as far as its structure, by code that runs nothing from it."""
