"""Scaled dot-product attention as ONNX operators: four of them, five with a mask."""

from __future__ import annotations

import math
from typing import Any

from onnxscript import opset20 as op

_NEVER = -1e4
"""Score of a key that may not be looked at: float16 holds it, and the softmax makes it zero."""


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """A translation of `torch.nn.functional.scaled_dot_product_attention` for `torch.onnx.export`.

    The exporter's own asks at run time for shapes that the graph knows, and mends rows in which
    nothing may be looked at; here every row may look at something, as the start token is never
    padding.

    Args:
        query: (B, heads, Q, C) float. key, value: (B, heads, K, C) float.
        attn_mask: bool, broadcastable to (B, heads, Q, K), True where a key may be looked at.

    Returns:
        (B, heads, Q, C)
    """
    assert not (dropout_p or is_causal or enable_gqa)  # no stage of the network asks for them
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    scores = op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2]))
    scores = op.Mul(scores, op.Constant(value_float=scale))
    if attn_mask is not None:
        scores = op.Where(attn_mask, scores, op.Constant(value_float=_NEVER))
    return op.MatMul(op.Softmax(scores, axis=-1), value)
