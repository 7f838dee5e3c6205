"""One command for each thing a developer does; nothing but Python 3.10 or later is needed to start.

    python3 dev.py demo [options of the demo]
    python3 dev.py test [--all] [options of pytest]
    python3 dev.py check [--without-torch]
    python3 dev.py sync
    python3 dev.py archive [--release]

``demo``, ``test`` and ``check`` make a virtual environment in ``.venv`` (once, and again when the requirements change).
``test`` runs three suites: the core, the pack inside every ComfyUI found, and ComfyUI's front end in a browser. ComfyUI
is looked for in ``COMFYUI_PATH`` (several folders with the system's path separator between them), else in
``~/ComfyUI``; ``COMFYUI_FRONT_END`` names another front end than each ComfyUI's own. ``--all`` includes the tests that
take long. ``check`` runs no test: style, format, types, imports, and the files that ``sync`` writes from the code.
``--without-torch`` checks in a small environment of its own, all but the types and the tables in ``docs``, which need
torch. ``archive`` writes the file that a release ships to ``out``, or says what must not be in it; ``--release``
also asks for what is filled in at the first release.
"""

from __future__ import annotations

import subprocess
import sys

OLDEST_PYTHON = (3, 10)
COMMANDS = ("demo", "test", "check", "sync", "archive")


def main(arguments: list[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command not in COMMANDS:
        print(__doc__)
        return 0 if command in ("-h", "--help") else 2
    # Not above: what these modules are written in, an older Python may not understand.
    from tools import archive, check, suites, sync
    from tools.environment import PROJECT, RefusedError, prepare_environment

    try:
        if command == "demo":
            return subprocess.call([str(prepare_environment()), "-m", "demo", *rest], cwd=PROJECT)
        if command == "test":
            return suites.run_suites(prepare_environment(), rest)
        if command == "check":
            return check.main(rest)
        return sync.main(rest) if command == "sync" else archive.main(rest)
    except RefusedError as refusal:
        sys.exit(f"dev: {refusal}")


if __name__ == "__main__":
    if sys.version_info < OLDEST_PYTHON:
        found, oldest = (".".join(map(str, version[:2])) for version in (sys.version_info, OLDEST_PYTHON))
        sys.exit(f"dev: this is Python {found}; {oldest} or later is needed.")
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
