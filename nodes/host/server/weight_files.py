"""The folder models/clear: its files, and the file for a name."""

from __future__ import annotations

import os

import folder_paths

from ....clear_core.weights import ClearFileError, bare_name, find_release
from ....clear_core.wording import quoted

FOLDER = "clear"
EXTENSION = ".safetensors"

NO_WEIGHTS = "none"
"""The name for "no file"."""


def register_folder() -> None:
    """Add models/clear to the host's folders; paths of extra_model_paths.yaml stay as they are.

    Source: ``folder_paths.add_model_folder_path``, which starts with an empty set of extensions (any file); ComfyUI
    0.9.0 and later.
    """
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, extensions = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {*extensions, EXTENSION})


def installed_names() -> list[str]:
    """Names of the weights files that are installed, sub-folders included."""
    return [name for name in folder_paths.get_filename_list(FOLDER) if name.lower().endswith(EXTENSION)]


def installed_name(name: str) -> str | None:
    """The installed file for a workflow's name, or None.

    Workflows are shared between machines: ``\\`` and ``/`` are equal, and a file in another sub-folder is found by its
    bare name.
    """
    wanted = name.replace("\\", "/")
    names = installed_names()
    for candidate in names:
        if candidate.replace("\\", "/") == wanted:
            return candidate
    same_base = [candidate for candidate in names if bare_name(candidate) == bare_name(name)]
    return same_base[0] if same_base else None


def path_of(name: str) -> str:
    """Full path of an installed weights file.

    Raises:
        ValueError: No such file is installed.
    """
    found = installed_name(name)
    path = found and folder_paths.get_full_path(FOLDER, found)
    if not path:
        raise ValueError(missing_sentence(name))
    return path


def missing_sentence(name: str) -> str:
    """The error for a name that is not installed."""
    folder = folder_paths.get_folder_paths(FOLDER)[0]
    told = quoted(name, 200)
    if not is_released(name):
        return (
            f"weights_name is {told}, which is not installed; put the file into {folder}, "
            'or choose another one or "none".'
        )
    return (
        f"weights_name is {told}, which is not installed; press Get weights on the node, or download "
        f"{find_release(bare_name(name)).url} into {folder}."
    )


def is_released(name: str) -> bool:
    """Whether "Get weights" offers a file of this name."""
    try:
        find_release(bare_name(name))
    except ClearFileError:
        return False
    return True
