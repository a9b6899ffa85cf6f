"""Intaglio: a reproducible build system for signed model images.

Importing this package imports nothing else: every command pulls in only what it needs.
"""

__version__ = "0.1.0"
