"""Opens a safetensors file, or raises one sentence that says why it cannot be one.

Only the header is read, and no allocation depends on a size that the file merely declares.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .errors import ClearFileError, printable

# The format's own limit on the JSON header.
MAX_HEADER_BYTES = 100_000_000

CLEAR_HEADER_BYTES = 4_000_000
"""Bound on the header of a CLEAR file. The released files have 50 kB; 100 MB of names of empty tensors would take 15
seconds and more than a GB to read."""

# A pickle (protocol 2 and later), a zip (what torch.save writes), GGUF, and an HTML page saved by a browser.
FOREIGN = {
    b"\x80": "a pickle (.pt, .ckpt, .bin), which can run code when it is loaded",
    b"PK\x03\x04": "a zip or a PyTorch checkpoint (.pt, .ckpt, .bin), which can run code when it is loaded",
    b"GGUF": "a GGUF file",
    b"<": "a web page or an XML text, probably from a failed or gated download",
    b"version https://git-lfs": "a Git LFS pointer, not the file behind it",
}

# User text for safetensors' own errors, by a fragment of the message in its newer and its older wording (letters only,
# lower case). All other messages are about the header's JSON.
DAMAGE = {
    (
        "incompletemetadata",
        "incompletebuffer",
    ): "is truncated, or has bytes that its header does not account for; download it again",
    (
        "invalidoffset",
    ): "is damaged: its header places tensors on top of each other or outside the file; download it again",
    ("overflow",): "is damaged: its header declares an impossible size; download it again",
    ("invalidshape", "invalidinfo"): "is damaged: the shape of a tensor and its bytes disagree; download it again",
}


def open_safetensors(path: str | os.PathLike[str], most: int = MAX_HEADER_BYTES) -> Any:
    """The open ``safe_open`` handle of a file, memory-mapped by torch; close it as a context manager, or drop it.

    Args:
        most: Bytes that its header may have.

    Raises:
        ClearFileError: The file is missing, unreadable, empty, of another format, truncated or damaged.
    """
    name = printable(Path(path).name)
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise ClearFileError(f"{name} is not a file; expected a .safetensors file.")
        with open(path, "rb") as file:
            start = file.read(32)
    except (OSError, ValueError) as error:
        if isinstance(error, ClearFileError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise ClearFileError(f"{name} cannot be read: {printable(reason)}.") from None
    check_start(name, start, found.st_size, most)
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise ClearFileError(f"{name} {damage(error)}.") from None


def check_start(name: str, start: bytes, size: int, most: int) -> None:
    """Rejects a file that is not safetensors, by its first bytes and its size."""
    if size == 0:
        raise ClearFileError(f"{name} is empty; download it again.")
    header = int.from_bytes(start[:8], "little")
    if size >= 10 and start[8:9] == b"{" and header <= min(size - 8, most):
        return
    for magic, what in FOREIGN.items():
        if start.lstrip().startswith(magic) and start[8:9] != b"{":
            raise ClearFileError(f"{name} is {what}; CLEAR weights are read from .safetensors files only.")
    if size < 10:
        raise ClearFileError(f"{name} is truncated at {size} bytes; download it again.")
    if start[8:9] != b"{":
        raise ClearFileError(f"{name} is not a safetensors file; CLEAR weights are read from .safetensors files only.")
    if header > MAX_HEADER_BYTES:
        raise ClearFileError(
            f"{name} declares a header of {header} bytes; the format allows {MAX_HEADER_BYTES}, "
            f"so it is damaged; download it again."
        )
    if header <= size - 8:
        raise ClearFileError(
            f"{name} is not a CLEAR file: it has a header of {header} bytes, and a CLEAR file's has at most {most}; "
            f"a LoRA or a whole model goes into its own loader."
        )
    raise ClearFileError(
        f"{name} is truncated: it declares a header of {header} bytes but has {size} bytes in all; download it again."
    )


def damage(error: Exception) -> str:
    """The end of the sentence for an error of the safetensors library."""
    message = "".join(filter(str.isalpha, str(error))).lower()
    for fragments, text in DAMAGE.items():
        if any(fragment in message for fragment in fragments):
            return text
    return f"is damaged, its header cannot be understood ({printable(error)}); download it again"
