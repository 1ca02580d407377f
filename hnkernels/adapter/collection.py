"""All adapters of a model, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hnkernels.adapter.handle import Handle
from hnkernels.adapter.host import Host
from hnkernels.adapter.layers import AdapterError, denoiser
from hnkernels.adapter.strength import Strength
from hnkernels.errors import InputError
from hnkernels.prompt import resolve_name


class UnknownAdapter(AdapterError, KeyError):
    """There is no adapter of that name."""

    __str__ = RuntimeError.__str__  # a KeyError would put the sentence in quotes


class Adapters(Mapping[str, Handle]):
    """The adapters of one model in their order of application, a mapping of names to handles. Always up to date.

    ``["style(1a2b3c4d)"]``, a name with a hash as in old prompts, is ``["style"]``; see ``prompt.resolve_name``.
    """

    def __init__(self, model: Any):
        self._model = denoiser(model)

    def set(self, names: str | Sequence[str], strengths: Strength | Sequence[Strength] | None = None) -> None:
        """Enables these adapters and disables all others.

        Args:
            names: one name or several.
            strengths: one for all, or a list with one each; ``None`` leaves them as they are.

        Raises:
            AdapterError: a name is unknown.
            ValueError: the strengths are not as many as the names, or one is of the wrong kind. Nothing has changed.
        """
        names = [names] if isinstance(names, str) else list(names)
        chosen = [self[name] for name in names]
        if strengths is not None:
            each: list[Any] = list(strengths) if isinstance(strengths, (list, tuple)) else [strengths] * len(names)
            if len(each) != len(names):
                raise InputError(f"strengths has {len(each)} entries and names {len(names)}; give one each")
            before = [adapter.strength for adapter in chosen]
            try:
                for adapter, strength in zip(chosen, each, strict=True):
                    adapter.strength = strength
            except ValueError:
                for adapter, kept in zip(chosen, before, strict=True):
                    adapter.strength = kept
                raise
        for adapter in self.values():
            adapter.enabled = any(adapter is other for other in chosen)

    @property
    def active(self) -> list[str]:
        """The names of those that are enabled."""
        return [name for name, adapter in self.items() if adapter.enabled]

    def enable(self, *names: str) -> None:
        """Switches these on, without a name all."""
        for adapter in [self[name] for name in names] or self.values():
            adapter.enabled = True

    def disable(self, *names: str) -> None:
        """Switches these off, without a name all. The model then computes as it did before, bit for bit."""
        for adapter in [self[name] for name in names] or self.values():
            adapter.enabled = False

    def delete(self, *names: str) -> None:
        """Detaches these."""
        for adapter in {id(adapter): adapter for adapter in [self[name] for name in names]}.values():
            adapter.detach()

    def __getitem__(self, name: str) -> Handle:
        resolved = resolve_name(name, list(self))
        for adapter in self._all():
            if adapter.name == resolved:
                return adapter
        there = ", ".join(repr(adapter.name) for adapter in self._all()) or "none"
        raise UnknownAdapter(f"no adapter named {name!r} is on the model; there are {there}")

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and resolve_name(name, list(self)) in list(self)

    def __iter__(self) -> Iterator[str]:
        return iter([adapter.name for adapter in self._all()])

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return f"Adapters({', '.join(map(repr, self.values()))})"

    def _all(self) -> list[Handle]:
        host = Host.of(self._model)
        return list(host.adapters) if host else []


def adapters(model: Any) -> Adapters:
    """The adapters of a pipeline or model, by name: ``adapters(pipe)["style"]``."""
    return Adapters(model)
