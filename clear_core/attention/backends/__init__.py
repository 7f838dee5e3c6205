"""The ways to compute a call, one file or folder each; none imports another."""
