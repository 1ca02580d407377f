"""The operations with tensors and networks of all shapes, dtypes and strides: refused, or equal to float64."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor

import hnkernels as hn
from reference import MLP
from tests.fuzz.campaign import Target
from tests.fuzz.mutations import odd_number, odd_tensor, odd_text
from tests.models import make_mlp, reference_of

_ERRORS = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.1}
"""Relative, by dtype: ten times its epsilon, for the sums of a few products; more where eager's own error is more."""

_DTYPES = (*_ERRORS, torch.float32, torch.float32, torch.int64, torch.complex64, torch.bool, torch.float8_e4m3fn)
_DIMS = (0, 1, 2, 3, 4, 8, 9)


def _tensor(random: Random, *shape: int, dtype: torch.dtype) -> Tensor:
    """One of this shape, laid out in memory in one of many ways; sometimes another."""
    if random.random() < 0.02:
        return odd_tensor(random)
    if random.random() < 0.03:
        shape = tuple(random.choice((*shape, 0, 1, 5)) for _ in range(random.randrange(5)))
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    plain = torch.randn(shape, generator=generator, dtype=torch.float64)
    plain = plain.to(random.choice(_DTYPES) if random.random() < 0.03 else dtype)
    match random.randrange(6):
        case 0 if plain.ndim > 1:
            return plain.transpose(0, -1).contiguous().transpose(0, -1)
        case 1 if plain.ndim:
            return torch.stack([plain, plain], -1)[..., 0]
        case 2 if plain.ndim and plain.numel():
            return plain[:1].expand(plain.shape)
        case 3:
            return torch.cat([plain.new_zeros(3), plain.reshape(-1)])[3:].view(plain.shape)
    return plain


def _maybe(random: Random, value: Any) -> Any:
    return random.choice((None, odd_text(random), 3, [1.0])) if random.random() < 0.015 else value


def _hyper(random: Random) -> dict[str, Any]:
    torch.manual_seed(random.randrange(2**31))
    d, dtype = random.choice(_DIMS[1:]), random.choice(list(_ERRORS))
    n = [random.choice(_DIMS) for _ in range(3)]
    mlps = [_mlps(random, d, dtype) for _ in range(2)]
    rows = [random.choice((0, 1, 2, 3, 7)) for _ in range(random.choice((0, 1, 1, 1, 2, 3)))]
    case = {
        "context": _tensor(random, *rows, d, dtype=dtype),
        "mlp_k": mlps[0],
        "mlp_v": mlps[1],
        **{f"w_{s}": _tensor(random, n[i], d, dtype=dtype) for i, s in enumerate("kvq")},
        **{f"b_{s}": random.choice((None, _tensor(random, n[i], dtype=dtype))) for i, s in enumerate("kvq")},
        "strength": _strength(random),
    }
    if random.random() < 0.03:
        case["backend"] = random.choice(("portable", "triton", odd_text(random)))
    return {key: _maybe(random, value) if key[:2] != "b_" else value for key, value in case.items()}


def _mlps(random: Random, d: int, dtype: torch.dtype) -> Any:
    def one() -> Any:
        structure = random.choice(((1, 2, 1), (1, 1), (1, 1.5, 2, 1)))
        width = d if random.random() < 0.97 else d + 1
        options = {"activation": random.choice((None, "relu", "mish", "prelu", "tanh", "softplus"))}
        mlp = make_mlp(width, layer_structure=structure, layer_norm=random.random() < 0.3, std=0.3, **options)
        return mlp.to(random.choice((dtype, dtype, torch.float32))).train(random.random() < 0.3)

    return random.choice((one(), [one()], [one(), one()], []))


def _strength(random: Random) -> Any:
    if random.random() < 0.7:
        return random.choice((0, 1, 1.0, 0.5, -1.0))
    number = random.choice((odd_number(random), odd_text(random), torch.tensor(0.5), odd_tensor(random)))
    return random.choice((number, [1.0, 0.5], {"k": 1.0, "v": 0.5}, {"k": number, "v": [number]}, {"k": 1}, None))


def _run_hyper(case: dict[str, Any]) -> tuple[Any, ...]:
    given = dict(case)
    w_q, b_q = given.pop("w_q"), given.pop("b_q")
    with torch.no_grad():
        if isinstance(w_q, Tensor) and w_q.numel() % 2:
            x = given.pop("context")
            q, k, v = hn.hyper_qkv(x, w_q=w_q, b_q=b_q, **given)
            return k, v, q
        return hn.hyper_kv(**given)


def _check_hyper(case: dict[str, Any], results: tuple[Any, ...]) -> None:
    x = case["context"]
    for stream, y in zip("kvq", results, strict=False):
        w, b = case[f"w_{stream}"], case[f"b_{stream}"]
        h, eager = x.double(), x
        if stream != "q":
            mlps, strength = case[f"mlp_{stream}"], case["strength"]
            mlps = mlps if isinstance(mlps, list) else [mlps]
            strength = strength[stream] if isinstance(strength, dict) else strength
            each = strength if isinstance(strength, list) else [strength] * len(mlps)
            for mlp, s in zip(mlps, each, strict=True):
                h, eager = _at(reference_of(mlp), s)(h), _at(reference_of(mlp, x.dtype), s)(eager)
        terms = h.abs() @ w.double().abs().T + (0 if b is None else b.double().abs())
        _close(y, *(t @ w.to(t.dtype).T + (0 if b is None else b.to(t.dtype)) for t in (h, eager)), terms=terms)


def _at(exact: MLP, strength: Any) -> MLP:
    exact.multiplier *= float(strength)
    return exact


def _close(
    y: Tensor, exact: Tensor, eager: Tensor, computed: torch.dtype | None = None, terms: Tensor | None = None
) -> None:
    """The result is as near to float64 as eager's in its dtype is, or nearly, or as ``computed`` lets it be.

    The error is relative to the result, or to the sizes of what is added up to it, which may be much larger.
    """
    computed = computed or y.dtype
    assert y.shape == exact.shape, (y.shape, exact.shape)
    assert y.dtype == eager.dtype
    if not exact.numel() or not exact.abs().max() <= min(torch.finfo(t).max for t in (y.dtype, computed)) / 10:
        return
    size = (exact if terms is None else terms).norm().clamp(min=1e-3)
    error, eagers = ((t.double() - exact).norm() / size for t in (y, eager))
    bound = max(_ERRORS[y.dtype], _ERRORS[computed])
    assert error <= bound or error <= 3 * eagers, f"differs by {error}, eager's by {eagers}"


HYPER = Target(draw=_hyper, run=_run_hyper, check=_check_hyper, refusals=(ValueError,))


def _lowrank(random: Random) -> dict[str, Any]:
    d, n, dtype = random.choice(_DIMS[1:]), random.choice(_DIMS[1:]), random.choice(list(_ERRORS))
    rank = random.choice((1, 1, min(n, d), min(n, d), random.choice((0, 2, 65))))
    sets = random.choice((0, 1, 2, 3))
    samples = sets * random.choice((1, 1, 2)) if random.random() < 0.9 else random.randrange(4)
    rows = [random.choice((0, 1, 2, 5)) for _ in range(random.choice((0, 1, 1, 2)))]
    index = torch.tensor([random.randrange(max(sets, 1)) for _ in range(samples)], dtype=torch.int64)
    indices = (None, None, index, index.int(), index + 1, -index - 1, index.double(), odd_tensor(random))
    scales = (
        None,
        0.5,
        2,
        torch.randn(samples, dtype=dtype),
        torch.randn(sets),
        odd_number(random),
        odd_tensor(random),
    )
    case = {
        "x": _tensor(random, samples, *rows, d, dtype=dtype),
        "weight": _tensor(random, n, d, dtype=dtype),
        "a": _tensor(random, sets, rank, d, dtype=dtype),
        "b": _tensor(random, sets, n, rank, dtype=dtype),
        "bias": random.choice((None, _tensor(random, n, dtype=dtype))),
        "scale": random.choice((*scales[:5], random.choice(scales))),
        "index": random.choice(indices),
        "base": _tensor(random, samples, *rows, n, dtype=dtype),
        "add": random.random() < 0.3,
    }
    return {
        key: _maybe(random, value) if key in ("x", "weight", "a", "b", "base", "index") else value
        for key, value in case.items()
    }


def _run_lowrank(case: dict[str, Any]) -> Tensor:
    given = dict(case)
    base, add = given.pop("base"), given.pop("add")
    with torch.no_grad():
        if add:
            return hn.lowrank_add(base, *(given[key] for key in ("x", "a", "b", "scale")), index=given["index"])
        if given["bias"] is None:
            sets = {f"{key}": [given[key]] for key in ("a", "b")}
            return hn.lowrank_linears(
                given["x"], [given["weight"]], **sets, scales=given["scale"], index=given["index"]
            )[0]
        return hn.lowrank_linear(**given)


def _check_lowrank(case: dict[str, Any], y: Tensor) -> None:
    x, a, b, scale, index = (case[key] for key in ("x", "a", "b", "scale", "index"))
    samples, sets = x.shape[0], a.shape[0]
    if not samples:
        assert y.numel() == 0
        return
    each = torch.arange(samples) // (samples // sets) if index is None else index.long()
    if isinstance(scale, Tensor):
        scale = scale if scale.shape[0] == samples else scale[each]
    scale = torch.as_tensor(1.0 if scale is None else scale, dtype=torch.float64).expand(samples)
    change = torch.einsum("s...d,srd,snr,s->s...n", x.double(), a.double()[each], b.double()[each], scale)
    if case["add"]:
        exact = case["base"].double() + change
        _close(y, exact, exact.to(case["base"].dtype), x.dtype)
    else:
        exact = x.double() @ case["weight"].double().T + (0 if case["bias"] is None else case["bias"].double()) + change
        _close(y, exact, exact.to(x.dtype))


LOWRANK = Target(draw=_lowrank, run=_run_lowrank, check=_check_lowrank, refusals=(ValueError,))
