"""What dev.py runs, and what writes files that ship or that the page shows: example workflows, pictures."""
