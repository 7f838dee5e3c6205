"""Random combinations of everything that CLEARUpscale takes: each as stock nodes give it, or one sentence at once.

``python3 dev.py test tests/host/test_sweep.py --all -k "[17]"`` runs one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.host.support_comfy.executor import Executor
from tests.host.support_comfy.oracle import with_oracle_windows
from tests.host.support_comfy.pictures import VAE_NAME, write_vae_files
from tests.host.support_comfy.sampling import relative_error, run_node
from tests.host.support_comfy.sweep import DTYPES, Maker, combination, graph_of, items_of
from tests.host.support_comfy.sweep_oracle import expected

COMBINATIONS = 200
SUPPORT = Path(__file__).parent / "support_comfy"


class Given:
    """What the nodes of the sweep hand over and keep, and what ran meanwhile."""

    def __init__(self) -> None:
        self.lists: dict[str, list[Any]] = {}
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.samplings = self.model_calls = 0


@pytest.fixture(scope="module")
def given() -> Given:
    return Given()


@pytest.fixture(scope="module")
def nodes_of_the_sweep(host: Any, pack: Any, given: Given) -> Iterator[None]:
    """Nodes that hand over any list and that keep results, in the host's table of nodes."""

    class ClearTestGive:
        RETURN_TYPES, OUTPUT_IS_LIST, FUNCTION, CATEGORY = ("*",), (True,), "give", "tests"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"name": ("STRING", {}), "run": ("INT", {})}}

        def give(self, name: str, run: int) -> tuple[list[Any]]:
            return (given.lists[name],)

    class ClearTestKeep:
        RETURN_TYPES, OUTPUT_NODE, FUNCTION, CATEGORY = (), True, "keep", "tests"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"image": ("IMAGE",), "latent": ("LATENT",)}}

        def keep(self, image: torch.Tensor, latent: dict[str, Any]) -> tuple[()]:
            given.kept.append((image, latent["samples"]))
            return ()

    own = {"ClearTestGive": ClearTestGive, "ClearTestKeep": ClearTestKeep}
    table = host.nodes.NODE_CLASS_MAPPINGS
    table.update(own)
    for name in ("nodes_easycache", "nodes_model_advanced"):
        host.load_file(Path(host.nodes.__file__).parent / "comfy_extras" / f"{name}.py")
    if "ClearTestPixels" not in table:
        host.load_file(SUPPORT / "test_only_pixels.py")
    yield
    for name in own:
        del table[name]


@pytest.fixture(scope="module")
def vaes(host: Any, nodes_of_the_sweep: None) -> dict[bool, Any]:
    """A VAE by whether it is of the host's own class."""
    write_vae_files(host.base / "models" / "vae_approx")
    return {
        True: run_node(host.stock("VAELoader"), vae_name=VAE_NAME)[0],
        False: run_node(host.stock("ClearTestPixels"))[0],
    }


@pytest.fixture(scope="module")
def maker(host: Any, vaes: dict[bool, Any], control_files: dict[str, Path]) -> Maker:
    import comfy.controlnet

    layouts = {"plain": "xlabs", "masked": "inpaint"}
    loaded = {kind: comfy.controlnet.load_controlnet(str(control_files[name])) for kind, name in layouts.items()}
    return Maker(host, loaded, vaes[True])


@pytest.fixture(scope="module")
def models(host: Any, given: Given) -> dict[tuple[bool, str], Any]:
    """Models by whether they are for tiles and by dtype; they count their calls."""
    from tests.host.support_comfy.flux import build_flux

    def count(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        given.model_calls += 1
        return executor(*args, **kwargs)

    made = {}
    for tiles in (False, True):
        for dtype in ("float", "bfloat16"):
            model = build_flux(DTYPES[dtype], **({"depth": 0, "depth_single_blocks": 1} if tiles else {}))
            model.add_wrapper_with_key("apply_model", "count", count)
            made[tiles, dtype] = model
    return made


@pytest.fixture
def counted(given: Given, monkeypatch: pytest.MonkeyPatch) -> Iterator[Given]:
    """The counts of this test: every sampling of the host goes through ``comfy.sample.sample``."""
    import comfy.model_management
    import comfy.sample

    original = comfy.sample.sample

    def sample(*args: Any, **kwargs: Any) -> torch.Tensor:
        given.samplings += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(comfy.sample, "sample", sample)
    given.kept, given.samplings, given.model_calls = [], 0, 0
    yield given
    comfy.model_management.unload_all_models()  # Each combination runs as if it were alone.


@pytest.mark.slow
@pytest.mark.parametrize("number", range(COMBINATIONS))
def test_a_combination_is_what_stock_nodes_make_of_it(host, counted, maker, models, vaes, number):
    drawn = combination(number)
    print(drawn)
    model, vae = models[drawn.tiles, drawn.model_dtype], vaes[drawn.real_vae]
    lists = maker.lists(drawn)
    items = items_of(lists)
    counted.lists = {**lists, "model": [model], "vae": [vae]}
    executor = Executor(drawn.cache_type)
    succeeded = executor.run(graph_of(drawn, list(counted.lists)), ["keep"])
    assert succeeded != drawn.is_refused, executor.told
    if drawn.is_refused:
        assert counted.model_calls == 0 and counted.kept == []
        assert len(executor.told.splitlines()) == 1 and executor.told.endswith("."), executor.told
        return
    kept, samplings, calls = counted.kept, counted.samplings, counted.model_calls
    assert len(kept) == len(items), f"{len(kept)} results for {len(items)} items"
    if drawn.mask == "empty":
        assert calls == 0, f"{calls} calls of the model for empty masks"
    else:
        assert samplings == len(items) * drawn.stages, f"{samplings} samplings"
    oracle = with_oracle_windows(model, drawn.windows)
    for index, (item, (image, latent)) in enumerate(zip(items, kept, strict=True)):
        with torch.inference_mode():
            whole, whole_latent = expected(host, drawn, item, oracle, vae)
        assert image.shape == whole.shape and latent.shape == whole_latent.shape
        error, of_pixels = relative_error(latent, whole_latent), relative_error(image, whole)
        assert max(error, of_pixels) < drawn.tolerance, f"item {index}: latent {error:.1e}, picture {of_pixels:.1e}"
