"""The released CLEAR files: names, purposes and addresses.

Source: the table in the README of the reference repository, github.com/Huage001/CLEAR.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from ..environment import variable
from ..families import FLUX1
from .errors import ClearFileError, printable
from .naming import STREAMS, TRAINED

REPOSITORY = "Huage001/CLEAR"

LICENCE = (
    "Derived from FLUX.1-dev: FLUX.1 [dev] Non-Commercial License "
    "(https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md)."
)

SUFFIX = ".safetensors"

HUB = "https://huggingface.co"


def hub_address() -> str:
    """Address of the hub, or of the mirror named by ``HF_ENDPOINT``, to be shown: without a name and a password.

    A value that is no address of the web is passed over here; ``fetch`` says what is wrong with it.
    """
    try:
        given = urlsplit(variable("HF_ENDPOINT"))
        if given.scheme not in ("http", "https") or not given.hostname or not given.geturl().isprintable():
            return HUB
    except ValueError:
        return HUB
    return given._replace(netloc=given.netloc.rpartition("@")[2], query="", fragment="").geturl().rstrip("/")


@dataclass(frozen=True)
class Release:
    """One file of the catalogue.

    Attributes:
        stem: File name without ``.safetensors``.
        radius: Window radius in tokens of 16 x 16 pixels.
        down_factor: Side of the pooled cells in tokens; 1 without pooling.
        meant_for: The pictures that it suits, for users.
        width, num_double, num_single: Hidden size and blocks of the model it fits.
    """

    stem: str
    radius: int
    down_factor: int
    meant_for: str
    width: int = FLUX1.width
    num_double: int = FLUX1.num_double
    num_single: int = FLUX1.num_single

    @property
    def name(self) -> str:
        return self.stem + SUFFIX

    @property
    def url(self) -> str:
        """Address for a browser, at the hub or at the mirror that ``fetch`` asks."""
        return f"{hub_address()}/{REPOSITORY}/resolve/main/{self.name}"

    @property
    def size(self) -> int:
        """Bytes of its tensors in bf16; the header adds some tens of kilobytes."""
        counts = {"double": self.num_double, "single": self.num_single}
        layers = sum(counts[stream] * len(TRAINED[stream]) for stream in STREAMS)
        elements = layers * (self.width + 1) * self.width  # a weight and a bias each
        if self.down_factor > 1:
            elements += sum(counts.values()) * self.down_factor**2
        return 2 * elements

    def __str__(self) -> str:
        return self.name


CATALOGUE: dict[str, Release] = {
    release.stem: release
    for release in (
        Release("clear_local_32", 32, 1, "1K to 4K; nearest to the original model, the most work per token"),
        Release("clear_local_16", 16, 1, "2K to 8K; the middle between fidelity and work"),
        Release(
            "clear_local_8",
            8,
            1,
            "4K to 8K over an existing picture (SDEdit); repeats patterns when it starts from noise",
        ),
        Release(
            "clear_local_16_down_4",
            16,
            4,
            "1K to 4K; sees the whole picture coarsely, its work grows with the square of the tokens",
        ),
        Release(
            "clear_local_8_down_4",
            8,
            4,
            "1K to 4K; the published notebooks' choice, sees the whole picture coarsely, "
            "its work grows with the square of the tokens",
        ),
    )
}


def find_release(name: str) -> Release:
    """The catalogue's entry of exactly this name, with or without ``.safetensors``.

    Raises:
        ClearFileError: There is no such entry; folders, URLs and other repositories are not accepted.
    """
    release = CATALOGUE.get(str(name).removesuffix(SUFFIX))
    if release is None:
        raise ClearFileError(f"{printable(name)!r} is not in the catalogue; expected one of {', '.join(CATALOGUE)}.")
    return release
