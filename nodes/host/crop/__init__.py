"""The part of a call's inputs that belongs to a part of the frame: to a tile, or to a strip."""
