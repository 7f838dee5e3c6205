"""The quality experiments: how near windows on the tiny FLUX come to its full attention, before and after distillation."""
