"""Sigmoid and softplus for kernels, in float32. Which sigmoid is faster depends on the code around it."""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _inverse(value):
    """1 / value for positive values that are neither huge nor tiny: fewer instructions than a division."""
    return tl.rsqrt(value * value)


@triton.jit
def softplus(value):
    """log(1 + exp(value)) to full float32 precision; the logarithm is computed as 2 atanh(e / (2 + e))."""
    e = tl.exp2(-tl.abs(value) * 1.4426950408889634)
    s = e * _inverse(2.0 + e)
    q = s * s
    series = 0.2 + q * (0.14285714 + q * (0.11111111 + q * (0.09090909 + q * 0.07692308)))
    return tl.maximum(value, 0.0) + 2.0 * s * (1.0 + q * (0.33333333 + q * series))


@triton.jit
def sigmoid(value):
    """1 / (1 + exp(-value)) without overflow."""
    e = tl.exp2(-tl.abs(value) * 1.4426950408889634)
    return tl.where(value >= 0, 1.0, e) * _inverse(1.0 + e)


@triton.jit
def short_sigmoid(value):
    """1 / (1 + exp(-value)) in fewer instructions: the square of a reciprocal square root."""
    root = tl.rsqrt(1.0 + tl.exp2(value * -1.4426950408889634))
    return root * root
