"""Tiles of the image grid: which keys a tile of queries needs, and in which order tokens lie."""
