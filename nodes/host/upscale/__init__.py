"""CLEARUpscale in the host: stages, tiles, conditioning, progress. Never imports inspect."""
