"""CLEAR in other people's FLUX: one file per library, each imported only where it is used."""
