"""The only code that touches ComfyUI (``comfy.*``, ``folder_paths``)."""
