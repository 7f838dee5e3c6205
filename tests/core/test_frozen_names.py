"""Names that saved graphs and API prompts hold: of nodes, and of their inputs and outputs, in order."""

from __future__ import annotations

from tests.support import PROJECT
from tests.support.frozen import FROZEN
from tools.schemas import read_schemas


def test_no_name_that_a_saved_graph_holds_has_changed():
    """A graph restores widgets by position and links by name or position; a prompt of the API goes by names alone.

    A new widget: append its name to tests/support/frozen_names.json. To rename or remove anything: CONTRIBUTING.md.
    """
    found = {
        schema.node_id: {"inputs": [one.name for one in schema.inputs], "outputs": [one.name for one in schema.outputs]}
        for schema in read_schemas(PROJECT)
    }
    assert found == FROZEN
