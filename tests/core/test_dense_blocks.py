"""The list of blocks that keep full attention, as people write it."""

from __future__ import annotations

import pytest

from clear_core.dense_blocks import parse_dense_blocks

DOUBLE, SINGLE = 19, 38


def doubles(*indices: int) -> set[tuple[str, int]]:
    return {("double", i) for i in indices}


def singles(*indices: int) -> set[tuple[str, int]]:
    return {("single", i) for i in indices}


@pytest.mark.parametrize(
    "text, blocks",
    [
        ("", set()),
        (" , ", set()),
        ("0, 1, 54-56", doubles(0, 1) | singles(35, 36, 37)),
        ("d0-3, s35-37", doubles(0, 1, 2, 3) | singles(35, 36, 37)),
        ("18-19", doubles(18) | singles(0)),
        ("D 2,s 4 - 5 ,  2,", doubles(2) | singles(4, 5)),
        ("0-56", doubles(*range(DOUBLE)) | singles(*range(SINGLE))),
        ("s0", singles(0)),
    ],
)
def test_lists(text, blocks):
    assert parse_dense_blocks(text, DOUBLE, SINGLE) == blocks


@pytest.mark.parametrize(
    "text, piece",
    [
        ("0, x", "'x'"),
        ("0 1", "'0 1'"),
        ("-1", "'-1'"),
        ("1.5", "'1.5'"),
        ("t3", "'t3'"),
        ("d0-s3", "'d0-s3'"),
        ("3, 57", "'57'"),
        ("d19", "'d19'"),
        ("s0-38", "'s0-38'"),
        ("5-3", "'5-3'"),
        ("0-99999999999", "'0-99999999999'"),
        ("٣", "'٣'"),
    ],
)
def test_what_is_wrong_is_named_with_the_models_blocks(text, piece):
    with pytest.raises(ValueError) as raised:
        parse_dense_blocks(text, DOUBLE, SINGLE)
    assert piece in str(raised.value) and "19 double and 38 single blocks" in str(raised.value)


def test_a_model_without_single_blocks_names_what_it_has():
    with pytest.raises(ValueError, match="2 double and 0 single blocks"):
        parse_dense_blocks("s0", 2, 0)
