"""Names of nodes, inputs and outputs in their frozen order, as saved graphs hold them."""

import json
from pathlib import Path

FROZEN: dict[str, dict[str, list[str]]] = json.loads(Path(__file__).with_name("frozen_names.json").read_text("utf-8"))
