"""The numbers that reach a node, checked against its own schema before it works.

The host compares a widget's value with its range, which NaN passes, and does not look at what a link brings.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from comfy_api.latest import io

from ...clear_core.number_checks import check_number

Given = ParamSpec("Given")
Node = TypeVar("Node", bound=type[io.ComfyNode])


def with_checked_numbers(
    execute: Callable[Concatenate[Node, Given], io.NodeOutput],
) -> Callable[Concatenate[Node, Given], io.NodeOutput]:
    """``execute`` of a node, which refuses any number that is not finite or not in its widget's range.

    Raises:
        ValueError: From the returned function; the sentence names the widget.
    """

    @functools.wraps(execute)
    def checked(cls: Node, *sockets: Given.args, **inputs: Given.kwargs) -> io.NodeOutput:
        schema = cls.define_schema()
        for declared in schema.inputs:
            if declared.id in inputs and isinstance(declared, (io.Int.Input, io.Float.Input)):
                given: Any = inputs[declared.id]
                for value in given if schema.is_input_list else (given,):
                    check_input(declared, value)
        return execute(cls, *sockets, **inputs)

    return checked


def check_input(declared: io.Int.Input | io.Float.Input, value: object) -> None:
    """Refuse a value that a number's widget could not have."""
    least = -math.inf if declared.min is None else declared.min
    most = math.inf if declared.max is None else declared.max
    check_number(declared.id, value, least, most, whole=isinstance(declared, io.Int.Input))
