"""Executors: where an action runs. They place it and never interpret it."""
