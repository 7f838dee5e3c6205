"""The nodes' own names and tooltips in the form of a locale file."""

from __future__ import annotations

from typing import Any

SEED_CONTROL = "control_after_generate"


def described_inputs(info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Inputs of a node by name, as /object_info describes them: options with tooltip, default and so on."""
    groups = info["input"]
    return {
        name: (spec[1] if len(spec) > 1 else {})
        for group in ("required", "optional")
        for name, spec in groups.get(group, {}).items()
    }


def english_locale(infos: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """``locales/en/nodeDefs.json`` as it follows from what /object_info says of the nodes."""
    locale: dict[str, Any] = {}
    for node, info in sorted(infos.items()):
        inputs: dict[str, dict[str, str]] = {}
        for name, options in described_inputs(info).items():
            inputs[name] = {"name": name, "tooltip": options.get("tooltip") or ""}
            if options.get(SEED_CONTROL):
                inputs[SEED_CONTROL] = {"name": SEED_CONTROL.replace("_", " ")}
        locale[node] = {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": inputs,
            "outputs": {
                str(index): {"name": name, "tooltip": tooltip or ""}
                for index, (name, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
            },
        }
    return locale
