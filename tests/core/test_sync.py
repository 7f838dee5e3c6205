"""dev.py sync: what is generated follows the code, and nothing is written that it cannot know."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.table_pages import PAGES
from tools import sync, translations
from tools.environment import RefusedError

PROJECT = Path(__file__).resolve().parents[2]
LOCALE = Path("locales/en/nodeDefs.json")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What sync reads and writes, in a folder that it takes for the project."""
    for folder in ("nodes", "clear_core", "locales", "web"):
        shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    (tmp_path / "docs").mkdir()
    (tmp_path / "tools").mkdir()
    shutil.copy(PROJECT / translations.TABLE, tmp_path / translations.TABLE)
    shutil.copy(PROJECT / sync.ARCHITECTURE, tmp_path / sync.ARCHITECTURE)
    monkeypatch.setattr(sync, "PROJECT", tmp_path)
    return tmp_path


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def paths(stale: dict[Path, str]) -> list[str]:
    return sorted(path.as_posix() for path in stale)


def test_nothing_that_is_generated_is_stale():
    assert paths(sync.stale(PROJECT)) == []


def test_a_new_widget_reaches_the_locale_and_the_page(copy: Path):
    widget = 'io.Float.Input(\n                    "sharpness",\n                    tooltip=f"At most {MOST}.",\n'
    change(copy / "nodes" / "attention.py", 'io.Int.Input(\n                    "radius",\n', f"{widget}),\nRADIUS")
    change(copy / "nodes" / "attention.py", "RADIUS", 'io.Int.Input(\n                    "radius",\n')
    change(copy / "nodes" / "attention.py", "\n\nclass CLEARAttention", "\nMOST = 3\n\nclass CLEARAttention")
    with pytest.raises(RefusedError, match=r"lacks 'sharpness' \(CLEARAttention.inputs.sharpness.name\); add it there"):
        sync.stale(copy)
    rows = json.loads((copy / translations.TABLE).read_text(encoding="utf-8"))
    for text in ("sharpness", "At most 3."):
        rows.append({"en": text, **{language: f"{text} {language}" for language in translations.LANGUAGES}})
    (copy / translations.TABLE).write_text(json.dumps(rows), encoding="utf-8")
    made = [f"web/docs/CLEARAttention/{language}.md" for language, words in translations.LANGUAGES.items() if words]
    locales = [f"locales/{language}/nodeDefs.json" for language in ("en", *translations.LANGUAGES)]
    assert paths(sync.stale(copy)) == sorted([*locales, *made, "web/js/settings.js"])
    assert sync.main([]) == 0
    assert "| sharpness ja `sharpness` | At most 3. ja |" in (copy / made[0]).read_text(encoding="utf-8")
    inputs = json.loads((copy / LOCALE).read_text(encoding="utf-8"))["CLEARAttention"]["inputs"]
    assert inputs["sharpness"] == {"name": "sharpness", "tooltip": "At most 3."}
    script = (copy / "web/js/settings.js").read_text(encoding="utf-8")
    assert script.index('"strength"') < script.index('"sharpness"') < script.index('"radius"')
    assert paths(sync.stale(copy)) == []


def test_a_text_that_changed_has_to_be_translated_anew(copy: Path):
    change(copy / "nodes" / "guide.py", "Factor on the whole guidance; 0 is off.", "Factor on all guidance; 0 is off.")
    with pytest.raises(RefusedError, match="lacks 'Factor on all guidance; 0 is off.'"):
        sync.stale(copy)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"en": "stray", "zh": "a", "ja": "b", "ko": "c"}, "holds 'stray', which no node says any more"),
        ({"en": "radius", "zh": "a", "ja": "", "ko": "c"}, "has 'radius' without ja; translate it there"),
        ({"at": "CLEARGuide.inputs.level.name", "en": "old", "zh": "a", "ja": "b", "ko": "c"}, "lacks 'level'"),
    ],
    ids=["unused", "untranslated", "the text of a place changed"],
)
def test_the_table_of_translations_has_what_the_nodes_say_and_no_more(copy: Path, row, told):
    rows = json.loads((copy / translations.TABLE).read_text(encoding="utf-8"))
    (copy / translations.TABLE).write_text(json.dumps([*rows, row]), encoding="utf-8")
    with pytest.raises(RefusedError, match=told):
        sync.stale(copy)


def test_a_table_is_filled_in_by_the_environment_with_torch(copy: Path, monkeypatch, capsys):
    sync.main([])
    assert "without .venv the tables in docs stay as they are" in capsys.readouterr().out
    for folder in ("benchmarks", "demo"):
        shutil.copytree(
            PROJECT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
        )
    for page in PAGES:
        shutil.copy(PROJECT / page, copy / page)
    change(copy / "docs/memory.md", "| 4096 x 4096 | 65536 | 5.1 | 7.0 |", "| 4096 x 4096 | 65536 | 5.2 |\n| more |")
    monkeypatch.setattr(sync, "interpreter_in", lambda environment: Path(sys.executable))
    sync.main([])
    assert capsys.readouterr().out == "dev: wrote docs/memory.md\n"
    assert (copy / "docs/memory.md").read_bytes() == (PROJECT / "docs/memory.md").read_bytes()


def test_a_changed_help_page_is_copied(copy: Path):
    page = copy / "web" / "docs" / "CLEARInspect"
    change(page / "en.md", "\n", "\n\nNew words.\n")
    sync.main([])
    assert (page.with_suffix(".md")).read_bytes() == (page / "en.md").read_bytes()


def test_a_hook_is_listed_with_its_versions_and_the_page_around_it_stays(copy: Path):
    (copy / "nodes/host/new.py").write_text(
        '"""New.\n\nSource: ``comfy.a`` and what\n``b|c`` hands over, in ComfyUI 0.9.0 to 0.33.\n"""\n',
        encoding="utf-8",
    )
    page = copy / sync.ARCHITECTURE
    page.write_text(f"# Mine\n{page.read_text(encoding='utf-8')}\nThe end.\n", encoding="utf-8")
    sync.main([])
    text = page.read_text(encoding="utf-8")
    assert "\n| `new.py` | `comfy.a`, `b\\|c` | 0.9.0 to 0.33 |\n" in text
    assert text.startswith("# Mine\n") and text.endswith("\nThe end.\n")


def test_without_marks_the_page_is_not_touched(copy: Path):
    (copy / sync.ARCHITECTURE).write_text("# Mine\n", encoding="utf-8")
    with pytest.raises(RefusedError, match="docs/architecture.md lacks the lines"):
        sync.main([])
    assert (copy / sync.ARCHITECTURE).read_text(encoding="utf-8") == "# Mine\n"


@pytest.mark.parametrize(
    "text, said",
    [
        pytest.param('f"As {path_of}"', r"a text is made with weight_files\.path_of", id="inside a text"),
        pytest.param("path_of('x')", "CLEARAttention has .* where a text belongs", id="as a text"),
    ],
)
def test_a_text_that_only_the_host_knows_is_refused(text: str, said: str, copy: Path):
    change(copy / "nodes" / "attention.py", 'tooltip="FLUX.1 and', f'tooltip={text}, extra="FLUX.1 and')
    with pytest.raises(RefusedError, match=said):
        sync.generated(copy)


def test_a_node_without_a_help_page_is_refused(copy: Path):
    (copy / "web/docs/CLEARInspect/en.md").unlink()
    with pytest.raises(RefusedError, match="CLEARInspect has no English help page; write web/docs/CLEARInspect/en.md"):
        sync.generated(copy)
