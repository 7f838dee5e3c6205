"""Writes files that ship or that the page shows: example workflows, pictures."""
