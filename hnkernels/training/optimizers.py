"""Optimisers by name, their parameter groups, and learning rates over the steps."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping

import torch
from torch import nn

from hnkernels.adapter.layers import find_attention
from hnkernels.errors import InputError
from hnkernels.generator import WeightHypernetwork
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.training.config import TrainingConfig
from hnkernels.training.schedule import Schedule

_ELSEWHERE = {
    "adamw8bit": ("bitsandbytes", "bitsandbytes.optim.AdamW8bit"),
    "lion": ("lion-pytorch", "lion_pytorch.Lion"),
    "prodigy": ("prodigyopt", "prodigyopt.Prodigy"),
}
"""Name → the package that has it, and where."""

_ONE_RATE = ("Prodigy",)
"""Classes that find one learning rate for all parameters, and fail in the first step if they are given several."""

_PARTS = ("encoder", "generator", "decoder")
_FUSED = ("cpu", "cuda", "xpu", "mps")


def optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    """The class of an optimiser; see ``TrainingConfig.optimizer``.

    Raises:
        ValueError: there is none of that name, or its package is not installed.
    """
    own = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    if name.lower() in own:
        found: Callable[..., torch.optim.Optimizer] = own[name.lower()]
        return found
    package, path = _ELSEWHERE.get(name.lower(), ("", name))
    module, _, attribute = path.rpartition(".")
    if not module:
        known = sorted([*own, *_ELSEWHERE])
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"accepted are {', '.join(known)}, or a dotted path"
        raise InputError(f"optimizer {name!r} is not known; {hint}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        install = package or module.partition(".")[0]
        raise InputError(f"optimizer {name!r} is not installed ({error}); pip install {install}") from error
    except AttributeError:
        raise InputError(f"optimizer {name!r}: {module} has no {attribute}") from None
    if not inspect.isclass(found) or not issubclass(found, torch.optim.Optimizer):
        raise InputError(f"optimizer {name!r} is not an optimiser of torch.optim's kind")
    return found


def make_optimizer(net: nn.Module, config: TrainingConfig, unet: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a run, with a learning rate of 1 times each group's factor (``group["factor"]``).

    Args:
        net: the network, on its device.
        config: optimizer, its arguments, weight decay, factors.
        unet: the base model, which tells what kind of attention a width belongs to.

    Raises:
        ValueError: the name, an argument or a factor cannot be used.
    """
    kind = optimizer_class(config.optimizer)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    factors = _factors(net, config.learning_rate_factors, unet)
    several = sorted(set(factors.values()) - {0.0})
    if kind.__name__ in _ONE_RATE and len(several) > 1:
        raise InputError(
            f"optimizer {config.optimizer!r} finds one learning rate for all parameters, and learning_rate_factors "
            f"makes {' and '.join(f'{factor:g}' for factor in several)} of it; leave them out, or choose adamw"
        )
    for name, parameter in net.named_parameters():
        decays = config.decay_biases_and_norms or parameter.ndim > 1
        groups.setdefault((factors[name], decays), []).append(parameter)
    options = dict(config.optimizer_args)
    accepted = inspect.signature(kind).parameters
    if "weight_decay" in accepted:
        options.setdefault("weight_decay", config.weight_decay)
    device = next(net.parameters()).device.type
    if (
        device in _FUSED
        and "fused" in accepted
        and not {"fused", "foreach", "capturable", "differentiable"} & set(options)
    ):
        options["fused"] = True  # one kernel for all, that leaves out a step by itself, without waiting for the device
    given = [
        {"params": parameters, "lr": factor, "factor": factor, **({} if decays else {"weight_decay": 0.0})}
        for (factor, decays), parameters in groups.items()
    ]
    try:
        return kind(given, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"optimizer {config.optimizer!r} with {options} cannot be made: {error}") from error


def learning_rate_at(config: TrainingConfig, end: int) -> Callable[[int], float | None]:
    """The learning rate of the step with a number (from 0); ``None`` where the schedule has ended.

    Raises:
        ValueError: diffusers has no scheduler of that name, or it does not take these arguments.
    """
    if config.lr_scheduler is None:
        return Schedule(config.learning_rate, end).at
    from diffusers.optimization import SchedulerType, get_scheduler

    names = [one.value for one in SchedulerType]
    if config.lr_scheduler not in names:
        near = difflib.get_close_matches(config.lr_scheduler, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"accepted are {', '.join(names)}"
        raise InputError(f"lr_scheduler {config.lr_scheduler!r} is not known; {hint}")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=float(config.learning_rate))
    options = dict(config.lr_scheduler_args)
    try:
        scheduler = get_scheduler(
            config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=end, **options
        )
        factor = scheduler.lr_lambdas[0]
        factor(0)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"lr_scheduler {config.lr_scheduler!r} with {options} cannot be made: {error}") from error
    return lambda step: float(config.learning_rate) * factor(step)


def _factors(net: nn.Module, given: Mapping[str, float], unet: nn.Module) -> dict[str, float]:
    """The factor on the learning rate of every parameter."""
    factors = dict.fromkeys((name for name, _ in net.named_parameters()), 1.0)
    for key, factor in given.items():
        names = _parameters_of(net, key, unet)
        for name in names:
            factors[name] *= factor
    return factors


def _parameters_of(net: nn.Module, key: str, unet: nn.Module) -> list[str]:
    """The names of the parameters that a key of ``learning_rate_factors`` is about."""
    names = [name for name, _ in net.named_parameters()]
    if isinstance(net, WeightHypernetwork):
        accepted = {part: [n for n in names if n.startswith(f"{part}.")] for part in _PARTS}
    else:
        assert isinstance(net, Hypernetwork)
        own = {id(p): (str(d), "kv"[i]) for d in net for i, mlp in enumerate(net[d]) for p in mlp.parameters()}
        places = {name: own[id(p)] for name, p in net.named_parameters()}
        accepted = {stream: [n for n in names if places[n][1] == stream] for stream in "kv"}
        accepted |= {str(d): [n for n in names if places[n][0] == str(d)] for d in net}
        kinds: dict[str, set[str]] = {}
        for spec in find_attention(unet):
            kinds.setdefault(str(spec.width), set()).add(spec.kind)
        for kind in ("attn1", "attn2"):
            widths = {width for width, found in kinds.items() if kind in found}
            if key == kind and (both := sorted(width for width in widths if len(kinds[width]) > 1)):
                raise InputError(
                    f"learning_rate_factors has {kind!r}, and the network's {', '.join(both)} acts on both kinds of "
                    "attention of this model; give a factor by width instead"
                )
            accepted[kind] = [n for n in names if places[n][0] in widths]
    if not accepted.get(key):
        known = [name for name, found in accepted.items() if found]
        raise InputError(f"learning_rate_factors has {key!r}; this network has {', '.join(known)}")
    return accepted[key]
