"""Where the tensors of a diffusers model really are, if accelerate or diffusers keeps them elsewhere between calls.

Source: accelerate's ``AlignDevicesHook`` (``enable_sequential_cpu_offload``), whose modules hold "meta" tensors and a
map of the real ones; diffusers' group offloading (``diffusers.hooks.group_offloading``), which with a stream goes back
to a copy of its own after each call. ``enable_model_cpu_offload`` moves the whole model, and needs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def offload_groups(transformer: nn.Module) -> Iterator[Any]:
    """Groups of diffusers' group offloading on a model."""
    seen = set[int]()
    for module in transformer.modules():
        hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        group = getattr(hooks.get("group_offloading"), "group", None)
        if group is not None and id(group) not in seen:
            seen.add(id(group))
            yield group


def check_room_for_pooling_weights(transformer: nn.Module) -> None:
    """Raise if the model cannot take up new parameters.

    Raises:
        ValueError: Group offloading with a stream is on: it copies what it knew when it was enabled, and nothing else.
    """
    if any(getattr(group, "stream", None) is not None for group in offload_groups(transformer)):
        raise ValueError(
            "group offloading with a stream was enabled before CLEAR, and it takes up no pooling weights later; apply "
            "CLEAR first and enable it then, or without use_stream."
        )


class Homes:
    """Finds the tensors that outlive a call.

    Args:
        transformer: The model.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self._copies: dict[Any, Tensor] = {}
        self._on_disk = set[Any]()
        for group in offload_groups(transformer):
            self._copies |= getattr(group, "cpu_param_dict", {})
            if getattr(group, "offload_to_disk_path", None) is not None:
                self._on_disk |= group.tensor_to_key.keys()

    def of(self, path: str, module: nn.Module, name: str) -> list[Tensor]:
        """The tensors to write to, so that a parameter has a new value in all later calls.

        Args:
            path: Of the parameter in the model, for the message.
            module, name: That holds the parameter, and under which name.

        Raises:
            ValueError: It is kept on disk, or nowhere.
        """
        parameter = getattr(module, name)
        if parameter.device.type == "meta":
            found = _offloaded(module, name)
            if found is None:
                raise ValueError(
                    f"{path} is not in memory (it is kept on disk, or was never loaded); load the CLEAR file before "
                    "offloading to disk is enabled."
                )
            return [found]
        if parameter in self._on_disk:
            raise ValueError(
                f"{path} is kept on disk by group offloading; load the CLEAR file before that is enabled, or leave out "
                "offload_to_disk_path."
            )
        copy = self._copies.get(parameter)
        own = parameter.data
        return [own] if copy is None or copy.data_ptr() == own.data_ptr() else [own, copy]


def _offloaded(module: nn.Module, name: str) -> Tensor | None:
    """The real tensor that accelerate keeps for a "meta" one; None if it is not in memory."""
    outer = getattr(module, "_hf_hook", None)
    for hook in (outer, *getattr(outer, "hooks", ())):
        held = getattr(hook, "weights_map", None)
        if held is None:
            continue
        # A map of one module, or of all modules by a prefix; what is on disk is read anew for each call.
        key, whole = f"{getattr(held, 'prefix', '')}{name}", getattr(held, "dataset", held)
        whole = whole if isinstance(whole, dict) else getattr(whole, "state_dict", {})
        if key in whole:
            return whole[key]
    return None
