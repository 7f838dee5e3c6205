"""The quality experiments: distance of windows on the tiny FLUX from dense attention, with and without distillation."""
