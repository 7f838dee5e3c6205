"""CLEAR in a diffusers FLUX gives the published numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from clear_core import ClearSpec
from clear_core.integrations.diffusers import apply_clear
from clear_core.weights import read_clear_file
from tests.support.diffusers_flux import golden_case, relative, run
from tests.support.golden_files import GOLDEN

CASES = sorted(
    path.stem.removeprefix("case_") for path in GOLDEN.glob("case_*.safetensors") if "sdedit" not in path.stem
)
PAST_THE_DIAGONAL = 1000


def student_path(case: dict[str, Any]) -> Path:
    return GOLDEN / f"student_{case['student_seed']}_down{case['down_factor']}.safetensors"


def apply_case(model: Any, case: dict[str, Any], **changes: Any) -> Any:
    wanted = {
        "spec": ClearSpec(case["radius"] or PAST_THE_DIAGONAL, case["down_factor"]),
        "ntk_factor": case["ntk_factor"],
        "proportional_attention": "on" if case["proportional_attention"] else "off",
    } | changes
    return apply_clear(model, wanted.pop("spec"), **wanted)


@pytest.mark.parametrize("name", CASES)
def test_golden_case(flux: Any, name: str) -> None:
    case, inputs, expected = golden_case(name)
    apply_case(flux, case)
    if not name.startswith("full"):
        # After applying, the file's spatial weights find their place by their published names.
        assert flux.load_state_dict(load_file(student_path(case)), strict=False).unexpected_keys == []
    assert relative(run(flux, inputs), expected) < 1e-5


def test_golden_cases_are_all_there() -> None:
    assert len(CASES) == 7


def test_spatial_weights_argument_equals_loading_the_file(flux: Any) -> None:
    case, inputs, expected = golden_case("down4_r8")
    file = read_clear_file(student_path(case))
    assert flux.load_state_dict(dict(file.tensors()), strict=False).unexpected_keys == []
    apply_case(flux, case, spatial_weights=file.spatial_weights())
    assert relative(run(flux, inputs), expected) < 1e-5
