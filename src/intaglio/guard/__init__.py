"""The runtime entry: verified bytes on their way to the program that serves them."""
