"""A FLUX small enough to ship: its codec, its captions, the model, and its training."""
