"""One log line for each cause, not one a step."""

from __future__ import annotations

import logging


class Notices:
    """Says each cause once in the life of one applied node."""

    def __init__(self) -> None:
        self.said: set[str] = set()

    def say(self, cause: str, sentence: str) -> None:
        """Log ``sentence`` as a warning unless ``cause`` was said before."""
        if cause not in self.said:
            self.said.add(cause)
            logging.warning("CLEAR: %s", sentence)
