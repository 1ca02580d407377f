"""Every pointwise activation of the table as device code: the function and its derivative.

Both take the pre-activation ``a`` in fp32 and the name as a constexpr. No libdevice: the interpreter and the AMD
backend lack parts of it, and near 0 the power series below are more accurate than ``exp`` and ``log``. Constants stand
after the tensor they scale: the interpreter cannot multiply the other way round. The derivatives at kinks are those
of PyTorch. Formulas: the documentation of ``torch.nn``; gelu is the one with erf.
"""

from __future__ import annotations

import triton
import triton.language as tl

_SELU_ALPHA = tl.constexpr(1.6732632423543772)
_SELU_SCALE = tl.constexpr(1.0507009873554805)
_SQRT_HALF = tl.constexpr(0.7071067811865476)
_INV_SQRT_2PI = tl.constexpr(0.3989422804014327)


@triton.jit
def _expm1(x):
    """``exp(x) - 1`` without cancellation near 0: the power series to x^9 for |x| < 0.5."""
    series = 1.0 + x * (1.0 / 8) * (1.0 + x * (1.0 / 9))
    series = 1.0 + x * (1.0 / 7) * series
    series = 1.0 + x * (1.0 / 6) * series
    series = 1.0 + x * (1.0 / 5) * series
    series = 1.0 + x * (1.0 / 4) * series
    series = 1.0 + x * (1.0 / 3) * series
    series = 1.0 + x * (1.0 / 2) * series
    return tl.where(tl.abs(x) < 0.5, x * series, tl.exp(x) - 1.0)


@triton.jit
def _log1p_of_exp_minus_abs(x):
    """``log(1 + exp(-|x|))`` as 2·artanh(s), s = t/(2+t), t = exp(-|x|) in (0, 1]: a series in s² <= 1/9."""
    t = tl.exp(-tl.abs(x))
    s = t / (2.0 + t)
    q = s * s
    series = 1.0 / 15 + q * (1.0 / 17 + q * (1.0 / 19))
    series = 1.0 / 9 + q * (1.0 / 11 + q * (1.0 / 13 + q * series))
    series = 1.0 / 3 + q * (1.0 / 5 + q * (1.0 / 7 + q * series))
    return 2.0 * s * (1.0 + q * series)


@triton.jit
def _tanh_tail(x):
    """``x - tanh(x)`` for |x| < 0.3 by the power series, which starts at x³/3."""
    q = x * x
    series = 21844.0 / 6081075 - q * (929569.0 / 638512875)
    series = 62.0 / 2835 - q * (1382.0 / 155925 - q * series)
    series = 1.0 / 3 - q * (2.0 / 15 - q * (17.0 / 315 - q * series))
    return x * q * series


@triton.jit
def _tanh(x):
    t = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - t) / (1.0 + t)
    return tl.where(tl.abs(x) < 0.3, x - _tanh_tail(x), tl.where(x < 0, -far, far))


@triton.jit
def _sigmoid(x):
    t = tl.exp(-tl.abs(x))
    return tl.where(x < 0, t, 1.0) / (1.0 + t)


@triton.jit
def _sech2(x):
    """``1 - tanh(x)²`` without cancellation."""
    t = tl.exp(-2.0 * tl.abs(x))
    return 4.0 * t / ((1.0 + t) * (1.0 + t))


@triton.jit
def _tanh_softplus(x):
    """``tanh(log(1 + e^x))`` = n/(n + 2) with n = e^x (e^x + 2); 1 where float32 says so."""
    e = tl.exp(tl.minimum(x, 20.0))
    n = e * (e + 2.0)
    return n / (n + 2.0)


@triton.jit
def activate(a, alpha, ACT: tl.constexpr):
    """The activation ``ACT`` of ``a``; ``alpha`` is prelu's slope. ``"linear"`` is the identity."""
    if ACT == "relu":
        return tl.where(a > 0, a, tl.where(a == a, 0.0, a))
    elif ACT == "leakyrelu":
        return tl.where(a > 0, a, 0.01 * a)
    elif ACT == "prelu":
        return tl.where(a > 0, a, alpha * a)
    elif ACT == "relu6":
        return tl.where(a != a, a, tl.minimum(tl.maximum(a, 0.0), 6.0))
    elif ACT == "hardtanh":
        return tl.where(a != a, a, tl.minimum(tl.maximum(a, -1.0), 1.0))
    elif ACT == "hardsigmoid":
        return tl.where(a != a, a, tl.minimum(tl.maximum(a + 3.0, 0.0), 6.0)) * (1.0 / 6)
    elif ACT == "hardswish":
        return a * tl.minimum(tl.maximum(a + 3.0, 0.0), 6.0) * (1.0 / 6)
    elif ACT == "hardshrink":
        return tl.where(tl.abs(a) <= 0.5, 0.0, a)
    elif ACT == "softshrink":
        return tl.where(a > 0.5, a - 0.5, tl.where(a < -0.5, a + 0.5, a * 0.0))
    elif ACT == "elu":
        return tl.where(a > 0, a, _expm1(a))
    elif ACT == "selu":
        return tl.where(a > 0, a, _expm1(a) * _SELU_ALPHA) * _SELU_SCALE
    elif ACT == "gelu":
        return 0.5 * a * (1.0 + tl.erf(a * _SQRT_HALF))
    elif ACT == "silu":
        return a * _sigmoid(a)
    elif ACT == "mish":
        return a * _tanh_softplus(a)
    elif ACT == "sigmoid":
        return _sigmoid(a)
    elif ACT == "logsigmoid":
        return tl.minimum(a, 0.0) - _log1p_of_exp_minus_abs(a)
    elif ACT == "softplus":
        return tl.maximum(a, 0.0) + _log1p_of_exp_minus_abs(a)
    elif ACT == "softsign":
        return a / (1.0 + tl.abs(a))
    elif ACT == "tanh":
        return _tanh(a)
    elif ACT == "tanhshrink":
        return tl.where(tl.abs(a) < 0.3, _tanh_tail(a), a - _tanh(a))
    else:
        tl.static_assert(ACT == "linear", "no device code for this activation")
        return a


@triton.jit
def derivative(a, alpha, ACT: tl.constexpr):
    """The derivative of the activation ``ACT`` at ``a``."""
    if ACT == "relu":
        return tl.where(a > 0, 1.0, 0.0)
    elif ACT == "leakyrelu":
        return tl.where(a > 0, 1.0, 0.01)
    elif ACT == "prelu":
        return tl.where(a > 0, 1.0, alpha)
    elif ACT == "relu6":
        return tl.where((a > 0.0) & (a < 6.0), 1.0, 0.0)
    elif ACT == "hardtanh":
        return tl.where((a > -1.0) & (a < 1.0), 1.0, 0.0)
    elif ACT == "hardsigmoid":
        return tl.where((a > -3.0) & (a < 3.0), 1.0 / 6, 0.0)
    elif ACT == "hardswish":
        return tl.where(a <= -3.0, 0.0, tl.where(a < 3.0, a * (1.0 / 3) + 0.5, 1.0))
    elif ACT == "hardshrink" or ACT == "softshrink":
        return tl.where(tl.abs(a) <= 0.5, 0.0, 1.0)
    elif ACT == "elu":
        return tl.where(a > 0, 1.0, tl.exp(tl.minimum(a, 0.0)))
    elif ACT == "selu":
        return tl.where(a > 0, 1.0, tl.exp(tl.minimum(a, 0.0)) * _SELU_ALPHA) * _SELU_SCALE
    elif ACT == "gelu":
        return 0.5 * (1.0 + tl.erf(a * _SQRT_HALF)) + a * _INV_SQRT_2PI * tl.exp(-0.5 * a * a)
    elif ACT == "silu":
        s = _sigmoid(a)
        return s * (1.0 + a * _sigmoid(-a))
    elif ACT == "mish":
        t = _tanh_softplus(a)
        return t + a * _sigmoid(a) * (1.0 - t * t)
    elif ACT == "sigmoid":
        return _sigmoid(a) * _sigmoid(-a)
    elif ACT == "logsigmoid":
        return _sigmoid(-a)
    elif ACT == "softplus":
        return _sigmoid(a)
    elif ACT == "softsign":
        d = 1.0 + tl.abs(a)
        return 1.0 / (d * d)
    elif ACT == "tanh":
        return _sech2(a)
    elif ACT == "tanhshrink":
        t = _tanh(a)
        return t * t
    else:
        tl.static_assert(ACT == "linear", "no device code for this activation")
        return tl.full(a.shape, 1.0, a.dtype)
