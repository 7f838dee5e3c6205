"""When the Triton kernel runs, and what happens when it fails."""

import importlib.util
import logging
import subprocess
import sys

import pytest
import torch

from clear_core import ClearSpec, clear_attention
from clear_core.attention import choose
from clear_core.attention.backends.triton import backend as triton_backend
from clear_core.attention.backends.triton import block_shapes
from clear_core.attention.call import CallKind

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


def test_clear_core_does_not_need_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, clear_core\n"
        "from clear_core.attention import backends\n"
        "q = torch.zeros(1, 1, 6, 16)\n"
        "clear_core.clear_attention(q, q, q, grid=(2, 3), spec=clear_core.ClearSpec(1))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "device, dtype, options, part",
    [
        (CPU, torch.float32, {}, "no compiler for cpu"),
        (torch.device("mps"), torch.float16, {}, "no compiler for mps"),
        (CUDA, torch.float64, {}, "does not take torch.float64"),
        (CUDA, torch.float16, {"needs_grad": True}, "no gradient"),
        (CUDA, torch.float16, {}, "8.0 and above, and cuda:0 has 7.5"),
    ],
)
def test_why_triton_is_not_available(device, dtype, options, part, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert part in choose.unavailable_reason("triton", device, dtype, 64, **options)


def test_a_named_triton_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="backend is 'triton', but Triton is not installed; use 'auto' or 'gather'"):
        run()


def on_a_card(monkeypatch, broken=(), hip=None):
    monkeypatch.setattr(choose, "_self_test", lambda backend, *case: "broken" if backend.name in broken else None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "hip", hip)


def chosen(dtype=torch.bfloat16, needs_grad=False):
    kind = CallKind(CUDA, dtype, 128, (64, 64), ClearSpec(8), needs_grad)
    backend, _, passed_over = choose._choose(kind)
    return backend.name, passed_over


def test_auto_takes_triton_on_nvidia_cards_and_flex_where_it_is_broken(monkeypatch):
    on_a_card(monkeypatch)
    assert chosen() == ("triton", None)
    on_a_card(monkeypatch, broken=["triton"])
    assert chosen() == ("flex", "The Triton kernel is not used because broken.")
    on_a_card(monkeypatch, broken=["triton", "flex"])
    assert chosen() == ("gather", "The Triton kernel is not used because broken.")


def test_auto_does_not_look_at_triton_where_it_has_no_use(monkeypatch):
    on_a_card(monkeypatch)
    assert chosen(needs_grad=True) == ("flex", None)
    assert chosen(torch.float32)[0] == "gather"
    on_a_card(monkeypatch, hip="6.4")
    assert chosen() == ("flex", None)


# ---- when it fails ----


class OutOfResources(Exception):  # noqa: N818 - named as Triton's
    """As Triton's."""


@pytest.fixture
def pretended(monkeypatch):
    """A machine on which the kernel is said to work, and a list of what to do in its place."""
    monkeypatch.setattr(choose, "_logged", set())
    monkeypatch.setattr(choose, "_dropped", {})
    monkeypatch.setattr(choose.TRITON, "unavailable", lambda kind: None)
    monkeypatch.setattr(choose, "_self_test", lambda *case: None)
    tried = []

    def pretend(launch):
        def spy(shape, *arguments):
            tried.append(shape)
            launch(shape)

        monkeypatch.setattr(triton_backend, "launch", spy)
        monkeypatch.setattr(triton_backend, "launch_pooling", lambda *arguments: None)
        return tried

    return pretend


def run(backend="triton", down_factor=1, **options):
    q, k, v = torch.randn(3, 1, 2, 5 + 9 * 11, 16, generator=torch.Generator().manual_seed(0)).unbind()
    return clear_attention(q, k, v, grid=(9, 11), spec=ClearSpec(4, down_factor), backend=backend, **options)


def test_blocks_that_do_not_fit_make_room_for_smaller_ones(pretended):
    shapes = block_shapes.shapes_for(CPU, torch.float32, 16)

    def launch(shape):
        if shape != shapes[-1]:
            raise OutOfResources("shared memory")

    tried = pretended(launch)
    run()
    assert tuple(tried) == shapes and len(shapes) > 1
    assert not choose._dropped


@pytest.mark.parametrize(
    "error", [OutOfResources("out of resource: shared memory"), TypeError("no such\nthing")], ids=repr
)
def test_a_kernel_that_fails_is_dropped_and_said_once(error, pretended, caplog):
    def launch(shape):
        raise error

    tried = pretended(launch)
    with caplog.at_level(logging.WARNING):
        outputs = [run() for _ in range(2)]
    assert len(tried) == (1 if isinstance(error, TypeError) else len(block_shapes.shapes_for(CPU, torch.float32, 16)))
    assert [record.message.count("\n") for record in caplog.records] == [0]
    assert str(error).splitlines()[0] in caplog.text
    assert all(torch.equal(out, run("gather")) for out in outputs)


def test_a_triton_that_cannot_be_imported_is_a_kernel_that_fails(pretended, monkeypatch):
    def broken(*asked):
        raise ImportError("DLL load failed while importing libtriton")

    pretended(lambda shape: None)
    monkeypatch.setattr(triton_backend, "shapes_for", broken)
    assert torch.equal(run(), run("gather"))
    assert "DLL load failed" in next(iter(choose._dropped.values()))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), KeyboardInterrupt()], ids=repr)
def test_what_the_host_handles_is_passed_on(error, pretended):
    def launch(shape):
        raise error

    pretended(launch)
    with pytest.raises(type(error)):
        run()
    assert not choose._dropped


@pytest.mark.parametrize("chunk_bytes, down_factor, launches", [(None, 2, 1), (1, 1, 1), (1, 2, 2), (10**6, 2, 1)])
def test_chunks_are_heads_where_keys_are_pooled(chunk_bytes, down_factor, launches, pretended):
    tried, chunks = pretended(lambda shape: None), []
    run(chunk_bytes=chunk_bytes, down_factor=down_factor, on_chunk=lambda: chunks.append(len(tried)))
    assert len(tried) == launches
    assert chunks[:launches] == list(range(1, launches + 1))


def test_an_interrupt_ends_it(pretended):
    class InterruptError(Exception):
        pass

    def interrupt():
        raise InterruptError

    tried = pretended(lambda shape: None)
    with pytest.raises(InterruptError):
        run(chunk_bytes=1, down_factor=2, on_chunk=interrupt)
    assert len(tried) == 1 and not choose._dropped
