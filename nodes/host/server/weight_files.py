"""The folder models/clear: its files, and the file for a name."""

from __future__ import annotations

import os
from dataclasses import dataclass

import folder_paths

from ....clear_core.weights import ClearFileError, bare_name, find_release, is_hidden, name_parts
from ....clear_core.wording import quoted

FOLDER = "clear"
EXTENSION = ".safetensors"

NO_WEIGHTS = "none"
"""The name for "no file"."""


@dataclass(frozen=True)
class InstalledFile:
    """A weights file: its name as the host lists it, sub-folders included, and its full path."""

    name: str
    path: str


def register_folder() -> None:
    """Add models/clear to the host's folders; paths of extra_model_paths.yaml stay as they are.

    Source: ``folder_paths.add_model_folder_path``, which starts with an empty set of extensions (any file); ComfyUI
    0.9.0 and later.
    """
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, extensions = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {*extensions, EXTENSION})


def installed_names() -> list[str]:
    """Names of the weights files that are installed, sub-folders included and hidden files left out."""
    names = folder_paths.get_filename_list(FOLDER)
    return [name for name in names if name.lower().endswith(EXTENSION) and not is_hidden(name)]


def installed_files(name: str) -> list[InstalledFile]:
    """Every installed file that a workflow's name may mean, the best one first.

    Workflows are shared between machines: ``\\`` and ``/`` are equal, and a file in another folder is found by its bare
    name. First comes the file of exactly this name, then the one that has most of the workflow's own folders, then the
    host's order. Links to one file count once.
    """
    wanted = name_parts(name)
    found: dict[str, InstalledFile] = {}
    for folder in folder_paths.get_folder_paths(FOLDER):
        for listed in installed_names():
            path = os.path.join(folder, listed)
            if bare_name(listed) == wanted[-1] and os.path.isfile(path):
                found.setdefault(os.path.realpath(path), InstalledFile(listed, path))

    def rank(file: InstalledFile) -> tuple[bool, int]:
        pairs = zip(reversed(wanted), reversed(name_parts(os.path.abspath(file.path))), strict=False)
        same = next((count for count, (mine, its) in enumerate(pairs) if mine != its), len(wanted))
        return name_parts(file.name) != wanted, -same

    return sorted(found.values(), key=rank)


def installed_name(name: str) -> str | None:
    """The installed file for a workflow's name, as the host lists it, or None."""
    files = installed_files(name)
    return files[0].name if files else None


def path_of(name: str) -> str:
    """Full path of an installed weights file.

    Raises:
        ValueError: No such file is installed.
    """
    files = installed_files(name)
    if not files:
        raise ValueError(missing_sentence(name))
    return files[0].path


def namesakes(name: str) -> tuple[str, ...]:
    """A sentence about the file that was taken for a name and the others of that name; none if there is only one."""
    taken, *others = installed_files(name)
    if not others:
        return ()
    mine, *rest = (os.path.dirname(file.path) for file in (taken, *others))
    where = ", ".join(rest[:3]) + (", …" if len(rest) > 3 else "")
    return (f"{bare_name(name)} is taken from {mine}; there is another file of this name in {where}.",)


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
