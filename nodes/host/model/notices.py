"""Logs each cause once, not at every step."""

from __future__ import annotations

import logging


class Notices:
    """Logs each cause once per applied node."""

    def __init__(self) -> None:
        self.logged: set[str] = set()

    def log_once(self, cause: str, sentence: str) -> None:
        """Log ``sentence`` as a warning unless ``cause`` was logged before."""
        if cause not in self.logged:
            self.logged.add(cause)
            logging.warning("CLEAR: %s", sentence)
