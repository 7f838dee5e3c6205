"""Several devices on one picture: the clones that the host's MultiGPU node makes compute strips or tiles of it."""
