"""Draws the pictures of README and of the registry."""
