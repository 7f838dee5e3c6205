"""CLEARInspect in the host: reads a model into plain values. Never imports upscale."""
