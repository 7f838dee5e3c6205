"""ComfyUI nodes of CLEAR for FLUX; nothing is imported here, so that an old host can still be asked its version."""
