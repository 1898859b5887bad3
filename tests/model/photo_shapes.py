"""Shapes of photos and grids that the tests of geometry try."""

from __future__ import annotations

from hypothesis import strategies as st

SIZE = 96


STRIDES = st.sampled_from([1, 4])


# Odd and even, landscape and portrait, below and above the square, a line, a dot.
SIDES = st.integers(1, 240)
