"""dev.py check: each kind of fault, planted in a copy of the project, makes it fail with a line that names it."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.table_pages import PAGES
from tools import check
from tools.environment import RefusedError, tool_requirements

PROJECT = Path(__file__).resolve().parents[2]
SLICE = ("pyproject.toml", "clear_core/spec.py", "clear_core/wording.py")  # enough for a tool that reads file by file

CALCULATED = ("benchmarks", "clear_core", "demo", *PAGES)  # what the tables in docs need

# What the generated files are made of, and where they are.
GENERATED = ("nodes", "clear_core", "locales", "web", "docs/architecture.md", "tools/translations.json")


def copy_of(names: tuple[str, ...], root: Path) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
        else:
            shutil.copy(PROJECT / name, root / name)
    if (settings := root / "pyproject.toml").is_file():
        # pyright complains of folders that are not in the slice.
        text = re.sub(r"(?m)^include = \[\"clear_core\", .*", 'include = ["clear_core"]', settings.read_text("utf-8"))
        settings.write_text(text, encoding="utf-8")


def run_step(name: str, root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and output of one step in a copy."""
    (step,) = [step for step in check.steps(root, Path(sys.executable)) if step.name == name]
    return check.run_steps([step]), capsys.readouterr().out


@pytest.mark.parametrize(
    "step, names, file, fault, line",
    [
        pytest.param(
            "pyright",
            SLICE,
            "clear_core/spec.py",
            "\n\ndef planted() -> int:\n    return 'one'\n",
            r'clear_core/spec\.py:\d+: .*"int" \(reportReturnType\)',
            id="type error",
        ),
        pytest.param(
            "imports",
            SLICE,
            "clear_core/spec.py",
            "\nimport nodes.attention\n",
            r"clear_core/spec\.py:\d+: imports nodes\.attention: clear_core imports no host",
            id="upward import",
        ),
        pytest.param(
            "generated files",
            GENERATED,
            "locales/en/nodeDefs.json",
            "\n",
            r"locales/en/nodeDefs\.json:\d+: stale",
            id="stale locale",
        ),
        pytest.param(
            "generated files",
            GENERATED,
            "web/docs/CLEARAttention/en.md",
            "\nMore.\n",
            r"web/docs/CLEARAttention\.md:\d+: stale",
            id="stale help page",
        ),
        pytest.param(
            "calculated tables",
            CALCULATED,
            "clear_core/memory.py",
            "\nRUNTIME_BYTES = 2 * GIB\n",
            r"docs/memory\.md:\d+: stale",
            id="stale table",
        ),
        pytest.param(
            "ruff check", SLICE, "clear_core/spec.py", "\nimport os\n", r"clear_core/spec\.py:\d+:\d+: F401", id="style"
        ),
        pytest.param(
            "ruff format",
            SLICE,
            "clear_core/spec.py",
            "\n\nx=1\n",
            r"clear_core/spec\.py:\d+:\d+: unformatted",
            id="format",
        ),
        pytest.param(
            "length",
            SLICE,
            "clear_core/spec.py",
            "\n" * 300,
            r"clear_core/spec\.py: 3\d\d lines; at most 300",
            id="length",
        ),
    ],
)
def test_a_planted_fault_is_named(step, names, file, fault, line, tmp_path, capsys):
    copy_of(names, tmp_path)
    assert run_step(step, tmp_path, capsys)[0] == 0
    with (tmp_path / file).open("a", encoding="utf-8") as end:
        end.write(fault)
    status, out = run_step(step, tmp_path, capsys)
    assert status == 1
    assert re.search(rf"^  {line}", out, re.MULTILINE), out
    assert f"check failed: {step}" in out and "To mend: " in out


def test_a_stale_file_is_mended_by_sync(tmp_path, capsys):
    copy_of(GENERATED, tmp_path)
    (tmp_path / "web/js/settings.js").unlink()
    _, out = run_step("generated files", tmp_path, capsys)
    assert "  web/js/settings.js:1: stale\n  To mend: run python3 dev.py sync\n" in out


def test_tables_that_cannot_be_made_or_placed_are_refused(tmp_path, capsys):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/tables.py").write_text("raise ValueError('no memory')\n")
    with pytest.raises(RefusedError, match="the tables in docs cannot be made: ValueError: no memory"):
        run_step("calculated tables", tmp_path, capsys)
    page = '{"docs/page.md": {"bytes": ["| a |"]}}'
    (tmp_path / "benchmarks/tables.py").write_text(f"print('{page}')\n")
    with pytest.raises(RefusedError, match=r"docs/page\.md lacks the lines <!-- table of bytes: generated by dev.py"):
        run_step("calculated tables", tmp_path, capsys)


def test_without_torch_tables_and_types_are_not_checked():
    names = [
        [step.name for step in check.steps(PROJECT, Path(sys.executable), with_torch=one)] for one in (True, False)
    ]
    assert set(names[0]) - set(names[1]) == {"calculated tables", "pyright"}


def test_a_tool_that_cannot_run_is_a_fault_and_not_a_pass(tmp_path, capsys):
    step = check.Step("pyright", lambda: check.type_errors([sys.executable, "-m", "no_such_tool"], tmp_path), "install")
    assert check.run_steps([step]) == 1
    assert "No module named no_such_tool" in capsys.readouterr().out


def test_every_step_runs_though_one_before_it_failed(capsys):
    steps = [check.Step("one", lambda: ["a:1: bad"] * 50, "mend"), check.Step("two", lambda: [], "mend")]
    assert check.run_steps(steps) == 1
    out = capsys.readouterr().out
    assert out.count("a:1: bad") == check.MOST_SHOWN and "and 20 more" in out and "two: ok" in out


def test_unknown_options_are_refused():
    with pytest.raises(RefusedError, match=r"check knows no option --fast; its only one is --without-torch\."):
        check.main(["--fast"])


def test_the_small_environment_has_pinned_tools_and_no_torch():
    pinned = tool_requirements((PROJECT / "requirements-dev.txt").read_text(encoding="utf-8"))
    assert [re.split(r"[\[=]", line)[0] for line in pinned] == ["ruff", "pyright", "pre-commit"]
    assert all("==" in line for line in pinned)
    with pytest.raises(RefusedError, match="lists no tools"):
        tool_requirements("torch==2.13.0\n")


def test_ci_checks_before_it_tests():
    text = (PROJECT / ".ci" / "run").read_text(encoding="utf-8")
    assert 0 < text.index("dev.py check") < text.index("dev.py test")
    workflow = (PROJECT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    assert "dev.py check --without-torch" in workflow
    jobs = dict(re.findall(r"^  ([a-z-]+):\n((?: {4}.*\n|\n)+)", workflow.partition("\njobs:\n")[2], re.MULTILINE))
    assert {"core", "test", "front-end", "installed"} <= {job for job, text in jobs.items() if "needs: check\n" in text}
    assert jobs["types"].rstrip().endswith("run: python dev.py check")
    assert "python3 dev.py check" in (PROJECT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
