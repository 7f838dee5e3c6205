"""Fixtures of all tests of clear_core."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clear_core.attention import disk_cache, first_use
from clear_core.attention.backends.triton import block_shapes


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What these tests compile and time stays out of the user's own folder."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        for module in (disk_cache, first_use, block_shapes):
            patch.setattr(module, "user_cache_folder", lambda: folder)
        yield
