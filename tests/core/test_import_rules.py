"""What may import what: the project keeps every rule of tools/import_rules.py, and the rules find what breaks them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.import_rules import RULES, WINGS, Project

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ours() -> Project:
    return Project(PROJECT)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_is_about_modules_that_exist(rule, ours):
    """A rule for a folder that was renamed would be kept by nobody."""
    places = [*rule.inside, *rule.not_in, *(name for name in rule.never if name.split(".")[0] in WINGS)]
    paths = [PROJECT / place.replace(".", "/") for place in places]
    assert [path for path in paths if not path.is_dir() and not path.with_suffix(".py").is_file()] == []
    assert any(module.startswith(rule.inside) for module in ours.modules)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_project_keeps_the_rule(rule, ours):
    assert [line for line in ours.broken_rules() if f": {rule.name} (" in line] == []


def test_no_backend_reaches_another(ours):
    assert list(ours.between_backends()) == []


def test_every_import_of_our_own_leads_to_a_file(ours):
    assert list(ours.lost()) == []


def test_imports_form_no_circle(ours):
    assert list(ours.circles()) == []


def test_dev_starts_with_the_standard_library_alone(ours):
    assert list(ours.dev_needs()) == []


def planted(root: Path, files: dict[str, str]) -> list[str]:
    """What is said of a project that consists of these files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return Project(root).offences()


BACKENDS = "clear_core/attention/backends"


@pytest.mark.parametrize(
    "files, offence",
    [
        pytest.param(
            {"clear_core/spec.py": "import torch\nimport comfy.utils\n"},
            "clear_core/spec.py:2: imports comfy.utils: clear_core imports no host",
            id="core to host",
        ),
        pytest.param(
            {"clear_core/spec.py": "def late():\n    from nodes import attention\n", "nodes/attention.py": ""},
            "clear_core/spec.py:2: imports nodes.attention: clear_core imports no host",
            id="core to nodes, in a function",
        ),
        pytest.param(
            {"clear_core/cost.py": "from .inspection import page\n", "clear_core/inspection/page.py": ""},
            "clear_core/cost.py:1: imports clear_core.inspection.page: the method does not import the report",
            id="method to report",
        ),
        pytest.param(
            {"nodes/attention.py": "from comfy.samplers import KSampler\nfrom comfy_api.latest import io\n"},
            "nodes/attention.py:1: imports comfy.samplers: only nodes/host touches the host",
            id="node to comfy",
        ),
        pytest.param(
            {"nodes/attention.py": "import nodes\n"},
            "nodes/attention.py:1: imports comfyui.nodes: only nodes/host touches the host",
            id="node to the host's own nodes",
        ),
        pytest.param(
            {"nodes/host/pack.py": "from ..attention import ADVANCED\n", "nodes/attention.py": ""},
            "nodes/host/pack.py:1: imports nodes.attention: nodes/host does not import the nodes",
            id="host wing to node",
        ),
        pytest.param(
            {"nodes/host/model/read.py": "from ..server import files\n", "nodes/host/server/files.py": ""},
            "nodes/host/model/read.py:1: imports nodes.host.server.files: nodes/host/model imports no sibling",
            id="model to sibling",
        ),
        pytest.param(
            {"nodes/host/upscale/info.py": "from ..inspect.others import a\n", "nodes/host/inspect/others.py": ""},
            "nodes/host/upscale/info.py:1: imports nodes.host.inspect.others: nodes/host/upscale imports neither",
            id="upscale to inspect",
        ),
        pytest.param(
            {"nodes/host/inspect/others.py": "from ..upscale.info import a\n", "nodes/host/upscale/info.py": ""},
            "nodes/host/inspect/others.py:1: imports nodes.host.upscale.info: nodes/host/inspect imports neither",
            id="inspect to upscale",
        ),
        pytest.param(
            {
                "nodes/host/server/routes.py": "from ..model.read import a\nfrom ..model.apply import b\n",
                "nodes/host/model/read.py": "",
                "nodes/host/model/apply.py": "",
            },
            "nodes/host/server/routes.py:2: imports nodes.host.model.apply: nodes/host/server touches no model",
            id="server to what patches, not to what reads",
        ),
        pytest.param(
            {f"{BACKENDS}/gather.py": "from . import flex\n", f"{BACKENDS}/flex.py": ""},
            f"{BACKENDS}/gather.py:1: imports clear_core.attention.backends.flex: the backend gather reaches",
            id="backend to backend",
        ),
        pytest.param(
            {
                f"{BACKENDS}/triton/launch.py": "from ...rows import a\nfrom ..base import b\n",
                f"{BACKENDS}/base.py": "",
                f"{BACKENDS}/dense.py": "",
                "clear_core/attention/rows.py": "from .backends.dense import a\n",
            },
            "clear_core/attention/rows.py:1: imports clear_core.attention.backends.dense: the backend triton reaches "
            "the reference",
            id="backend to the reference by way of another",
        ),
        pytest.param(
            {"clear_core/cost.py": "from .gone import a\n"},
            "clear_core/cost.py:1: imports clear_core.gone: an import of our own leads to a file",
            id="to nowhere",
        ),
        pytest.param(
            {"clear_core/a.py": "from . import b\n", "clear_core/b.py": "from .a import c\n"},
            "clear_core/b.py:1: imports clear_core.a: imports form no circle (clear_core.a > clear_core.b > "
            "clear_core.a)",
            id="circle",
        ),
        pytest.param(
            {"dev.py": "from tools import check\n", "tools/check.py": "import json\nimport numpy\n"},
            "tools/check.py:2: imports numpy: dev.py needs the standard library alone",
            id="dev.py to a package",
        ),
    ],
)
def test_a_planted_import_is_found_and_nothing_else(files, offence, tmp_path):
    (line,) = planted(tmp_path, files)
    assert line.startswith(offence)
