"""Every pointwise activation of the table as device code: the function and its derivative.

Both take the pre-activation ``a`` in fp32 and the name as a constexpr. No libdevice: the interpreter and the AMD
backend lack parts of it. Constants stand after the tensor they scale: the interpreter cannot multiply the other way
round. The derivatives at kinks are those of PyTorch. Formulas: the documentation of ``torch.nn``; gelu is the one with
erf.

This is the epilogue of products, 64 elements a thread, so instructions count. ``tl.exp2`` and ``tl.rsqrt`` are one
each on every GPU, where ``tl.exp`` takes five, a division eight (NVIDIA) to eleven (AMD) and ``tl.erf`` a branch:
hence exponentials to base 2, and 1/d as rsqrt(d)². Results below 2^-126 become 0.

How exact that is. exp2 is within 2^-22.5 of its result and rsqrt within 2^-22.9 (PTX ISA; AMD's within 1 unit in the
last place, the interpreter's exact), so that 1/d is within 2.6e-7 where a division as Triton compiles it for NVIDIA is
within 2.4e-7. With errors drawn evenly from these ranges the values of silu, mish, sigmoid and softsign have a relative
error (of norms) of 1.7e-7 in fp32, tanh's of 1.4e-7, gelu's of 1.1e-7; torch's have 3e-8 to 7e-8. Rounding to fp16
makes 2e-4, to bf16 2e-3. The polynomials are minimax fits of ``benchmarks/activation_fits.py``; their largest errors
stand beside them and are below 6e-8, but for tanh's.
"""

from __future__ import annotations

import triton
import triton.language as tl

_SELU_ALPHA = tl.constexpr(1.6732632423543772)
_SELU_SCALE = tl.constexpr(1.0507009873554805)
_LOG2_E = tl.constexpr(1.4426950408889634)
_MINUS_LOG2_SQRT_2PI = tl.constexpr(-1.3257480647361593)
_HUGE = tl.constexpr(2.0**126)


@triton.jit
def _expm1(x):
    """``exp(x) - 1`` for x <= 0, without cancellation near 0: a polynomial (error 1.5e-9) for x > -0.5."""
    series = x * 0.00112592248 + 0.0081932952
    series = series * x + 0.0416320484
    series = series * x + 0.166662888
    series = series * x + 0.499999865
    series = series * x + 1.0
    return tl.where(x > -0.5, x * series, tl.exp2(x * _LOG2_E) - 1.0)


@triton.jit
def _log1p_of_exp_minus_abs(x):
    """``log(1 + t)``, t = exp(-|x|) in (0, 1], as t times a polynomial (error 3.3e-8)."""
    t = tl.exp2(tl.abs(x) * -_LOG2_E)
    series = t * 0.00536482148 - 0.0300657823
    series = series * t + 0.0792045217
    series = series * t - 0.137538014
    series = series * t + 0.191536546
    series = series * t - 0.248571636
    series = series * t + 0.333213226
    series = series * t - 0.49999648
    series = series * t + 1.0
    return t * series


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
    """s/√(1 + s²) with s = sinh(x) = x·S(x²), near 0 and far from it.

    Of an error of S the result gets the part 1/cosh², so that P(x²)² + c with P of degree 3 does (error 1.6e-7), which
    takes an operation less than a polynomial of degree 5. Beyond 10 the result is 1.
    """
    x = tl.clamp(x, -10.0, 10.0, propagate_nan=tl.PropagateNan.ALL)
    q = x * x
    root = q * 1.00375188e-05 + 0.00115099152
    root = root * q + 0.0762950492
    root = root * q + 1.09224534
    s = x * (root * root - 0.192999884)
    return s * tl.rsqrt(s * s + 1.0)


@triton.jit
def _sigmoid(x):
    r = tl.rsqrt(tl.exp2(x * -_LOG2_E) + 1.0)
    return r * r


@triton.jit
def _sech2(x):
    """``1 - tanh(x)²`` without cancellation: v(2 - v) with v = 1 - tanh(|x|) = 2/(1 + exp(2|x|))."""
    r = tl.rsqrt(tl.exp2(tl.abs(x) * (2.0 * _LOG2_E) - 1.0) + 0.5)
    v = r * r
    return v * (2.0 - v)


@triton.jit
def _normal_tail(b):
    """Φ(-b) for b in [0, 15] as 2 to a polynomial: within 4.9e-8 of Φ where that is above 0.1, within 4.9e-9 beyond.

    Fitted up to 7, from where on the polynomial falls ever faster and its power is next to 0.
    """
    series = b * -2.40426376e-06 + 3.42506507e-05
    series = series * b - 0.000162037381
    series = series * b - 0.000194455399
    series = series * b + 0.00713691536
    series = series * b - 0.0525451665
    series = series * b - 0.459193112
    series = series * b - 1.15110673
    return tl.exp2(series * b - 1.0)


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
        return tl.clamp(a, 0.0, 6.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACT == "hardtanh":
        return tl.clamp(a, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACT == "hardsigmoid":
        return tl.clamp(a + 3.0, 0.0, 6.0, propagate_nan=tl.PropagateNan.ALL) * (1.0 / 6)
    elif ACT == "hardswish":
        return a * tl.minimum(tl.maximum(a + 3.0, 0.0), 6.0) * (1.0 / 6)
    elif ACT == "hardshrink":
        return tl.where(tl.abs(a) <= 0.5, 0.0, a)
    elif ACT == "softshrink":
        return a - tl.clamp(a, -0.5, 0.5)
    elif ACT == "elu":
        return tl.where(a > 0, a, _expm1(a))
    elif ACT == "selu":
        return tl.where(a > 0, a, _expm1(a) * _SELU_ALPHA) * _SELU_SCALE
    elif ACT == "gelu":
        # max(a, 0) - |a| Φ(-|a|); the first as a/2 + |a/2|, which leaves NaN and torch's NaN at -infinity.
        b = tl.minimum(tl.abs(a), 15.0, propagate_nan=tl.PropagateNan.ALL)
        return a * 0.5 + tl.abs(a * 0.5) - b * _normal_tail(b)
    elif ACT == "silu":
        return a * _sigmoid(a)
    elif ACT == "mish":
        # tanh(log(1 + e)) = n/(n + 2) with n = e (e + 2). At 2^28 that is exactly 1.
        e = tl.exp2(tl.minimum(a * _LOG2_E, 28.0))
        n = e * (e + 2.0)
        r = tl.rsqrt(n + 2.0)
        return a * (n * r * r)
    elif ACT == "sigmoid":
        return _sigmoid(a)
    elif ACT == "logsigmoid":
        return tl.minimum(a, 0.0) - _log1p_of_exp_minus_abs(a)
    elif ACT == "softplus":
        return tl.maximum(a, 0.0) + _log1p_of_exp_minus_abs(a)
    elif ACT == "softsign":
        r = tl.rsqrt(tl.abs(a) + 1.0)
        return a * r * r
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
        return tl.where(a > 0, 1.0, tl.exp2(a * _LOG2_E))
    elif ACT == "selu":
        return tl.where(a > 0, 1.0, tl.exp2(a * _LOG2_E) * _SELU_ALPHA) * _SELU_SCALE
    elif ACT == "gelu":
        # Φ(a) + a φ(a); of a < 0 it is w, of others 1 - w.
        b = tl.minimum(tl.abs(a), 15.0, propagate_nan=tl.PropagateNan.ALL)
        w = _normal_tail(b) - b * tl.exp2(b * b * (-0.5 * _LOG2_E) + _MINUS_LOG2_SQRT_2PI)
        return tl.where(a < 0, w, 1.0 - w)
    elif ACT == "silu":
        # σ(a) + a σ(a) σ(-a), and σ(-a) = e σ(a) with the e = exp(-a) that is there; σ(a) is 0 where e overflows.
        s = _sigmoid(a)
        return s + a * (tl.minimum(tl.exp2(a * -_LOG2_E), _HUGE) * s * s)
    elif ACT == "mish":
        # With y = 1/(n + 2), n as above: n y + a σ(a) (1 - (n y)²), of which the last two are 4 e (1 + e) y².
        e = tl.exp2(tl.minimum(a * _LOG2_E, 28.0))
        n = e * (e + 2.0)
        r = tl.rsqrt(n + 2.0)
        y = r * r
        return y * (n + tl.minimum(a, 20.0, propagate_nan=tl.PropagateNan.ALL) * (e * e + e) * 4.0 * y)
    elif ACT == "sigmoid":
        y = _sigmoid(-tl.abs(a))
        return y - y * y
    elif ACT == "logsigmoid":
        return _sigmoid(-a)
    elif ACT == "softplus":
        return _sigmoid(a)
    elif ACT == "softsign":
        d = tl.abs(a) + 1.0
        r = tl.rsqrt(d * d)
        return r * r
    elif ACT == "tanh":
        return _sech2(a)
    elif ACT == "tanhshrink":
        t = _tanh(a)
        return t * t
    else:
        tl.static_assert(ACT == "linear", "no device code for this activation")
        return tl.full(a.shape, 1.0, a.dtype)
