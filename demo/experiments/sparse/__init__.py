"""The laboratory of sparse attention: windows beside squares and chosen blocks, at equal keys per query."""
