"""Peers that nobody here wrote and that no Python package holds: programs built from Go modules, and how to run them."""
