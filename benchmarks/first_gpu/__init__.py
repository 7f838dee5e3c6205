"""The first run on a card that nobody here has measured, in one command; see ../README.md."""
