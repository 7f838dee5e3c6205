"""The scripts in ``web/js``: what one of them alone may do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "web" / "js"

# `input.link` and `output.links`: newer front ends warn of whoever reads them.
DEPRECATED = re.compile(r"""(?:\b(?:in|out)puts?|slot)\b[^;\n]*?(?:\.|\[["'])links?\b|\binput\.link\b""")
READS_LINKS = re.compile(r"""\.links?\b|\[["']links?["']\]|\b(?:getInputLink|getOutputNodes|getLink|linkIds)\b""")


def code(text: str) -> str:
    return re.sub(r"//.*", "", text)


@pytest.mark.parametrize(
    "line", ["node.inputs?.[index]?.link", "const isLinked = (input) => input.link != null;", "outputs[0].links ?? []"]
)
def test_the_rule_finds_a_deprecated_read(line):
    assert DEPRECATED.search(line) and READS_LINKS.search(line)


def test_links_are_read_in_one_script_and_by_supported_calls():
    texts = {path.name: code(path.read_text(encoding="utf-8")) for path in SCRIPTS.glob("*.js")}
    assert {name for name, text in texts.items() if READS_LINKS.search(text)} == {"graph.js"}
    assert DEPRECATED.findall(texts["graph.js"]) == []
