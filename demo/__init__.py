"""CLEAR without ComfyUI: a small FLUX samples a base and a high-resolution pass, with ordinary attention and CLEAR."""
