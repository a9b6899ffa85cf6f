"""Recipes, their locks, and where their inputs come from."""
