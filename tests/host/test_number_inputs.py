"""Numbers that reach the nodes, from a widget or by a link: finite and in range, or one sentence before any work."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from tests.host.support_comfy.sampling import run_node
from tests.host.support_comfy.server import error_message
from tests.host.test_server import CLEAR, SAMPLER, WORKFLOW

NODES = ("CLEARAttention", "CLEARUpscale", "CLEARUpscaleStage", "CLEARInspect", "CLEARGuide", "CLEARGuideAlign")

NO_NUMBERS = [math.nan, math.inf, -math.inf, "7", None, [2], 10**400]
"""The last one is a number, but in no widget's range; a single stage, which only CLEARUpscale makes, has few ranges."""


def number_inputs(node: type) -> list[str]:
    """Names of all inputs of a node that take a number."""
    kinds = node.INPUT_TYPES()
    return [name for part in kinds.values() for name, (kind, *_) in part.items() if kind in ("INT", "FLOAT")]


def defaults(node: type) -> dict[str, Any]:
    """A number for each: the widget's own, else 1."""
    kinds = {name: more[0] for part in node.INPUT_TYPES().values() for name, (_, *more) in part.items() if more}
    return {name: kinds[name].get("default", 1) for name in number_inputs(node)}


class Untouched:
    """A socket's value that no node may look at before it has refused a number."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked of a socket first")


@pytest.mark.parametrize("name", NODES)
def test_every_number_of_every_node_is_checked_first(host, pack, name):
    node = host.stock(name)
    sockets = {"model": Untouched()}
    if name.startswith("CLEARUpscale"):
        sockets |= {"image": Untouched(), "positive": Untouched(), "vae": Untouched()}
    wrap = (lambda value: [value]) if name == "CLEARUpscaleStage" else (lambda value: value)
    assert number_inputs(node), "the test found none"
    for wanted in number_inputs(node):
        for value in NO_NUMBERS if name != "CLEARUpscaleStage" else NO_NUMBERS[:-1]:
            given = {key: wrap(item) for key, item in {**sockets, **defaults(node), wanted: value}.items()}
            with pytest.raises(ValueError, match=f"^{wanted} is .*; expected .*number") as error:
                run_node(node, **given)
            told = str(error.value)
            assert told.endswith(".") and "\n" not in told and len(told) < 200


@pytest.mark.parametrize(
    ("value", "linked"), [pytest.param(math.nan, False, id="written"), pytest.param(math.nan, True, id="linked")]
)
@pytest.mark.parametrize("widget", ["strength", "ntk_factor", "end_percent"])
def test_a_server_ends_the_run_with_that_sentence(running_server, widget, value, linked):
    graph = copy.deepcopy(WORKFLOW)
    graph["20"] = {"class_type": "PrimitiveFloat", "inputs": {"value": value}}
    graph[CLEAR]["inputs"][widget] = ["20", 0] if linked else value
    entry = running_server.run(graph)
    told = error_message(entry)
    assert told.startswith(f"{widget} is nan; expected a number from 0 to ") and "\n" not in told
    (failed,) = [facts for kind, facts in entry["status"]["messages"] if kind == "execution_error"]
    assert failed["node_type"] == "CLEARAttention" and SAMPLER not in failed["executed"]
