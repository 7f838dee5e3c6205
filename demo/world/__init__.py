"""A small world of procedural images: scenes, their captions, and their drawing."""

from .draw import draw_scene
from .scene import Scene, Thing, random_scene

__all__ = ["Scene", "Thing", "draw_scene", "random_scene"]
