"""The tiny SD3: a small model of the SD3 family, trained on the scenes of ``demo/world``."""
