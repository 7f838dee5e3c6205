"""How the process that measures ends."""

DONE = 0
REFUSED = 2
"""The file holds figures of another device, version or revision."""

DEVICE_LOST = 75
"""Nothing runs on the device any more in that process; another one goes on."""

ORPHANED = 76
"""The command itself was ended."""
