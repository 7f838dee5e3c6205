"""The quality experiments: windows on the tiny FLUX against dense attention, and ways to a larger picture."""
