"""A small world of procedural pictures: what can be in a scene, what it is called, and how it is drawn."""

from .draw import draw_scene
from .scene import Scene, Thing, random_scene

__all__ = ["Scene", "Thing", "draw_scene", "random_scene"]
