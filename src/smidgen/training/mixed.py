"""Several trainings of one base in mixed batches: the network is called once for all of them, each
image with the delta under its own training.

Each training runs the loop that it would run alone (loop.py), in a greenlet of its own that stops
where the loop calls the network, and again where it has called backward. What it is given is the
output of its own rows, cut off from the graph; when all that were in a call have the gradients of
theirs, one backward pass goes through the network for all, and each delta gets its own gradients.
Clipping, optimizer, average, validation, checkpoints and the end are those of each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import greenlet
import torch
from torch import Tensor

from smidgen.core.bank import Bank
from smidgen.core.delta import Delta
from smidgen.errors import SmidgenError
from smidgen.fast.acting import acting
from smidgen.hosts.family import Condition
from smidgen.methods import parts_of
from smidgen.models.base import Base
from smidgen.models.calling import Network, calling
from smidgen.training import runtime
from smidgen.training.config import RunConfig
from smidgen.training.interrupt import StopRequest, stop_requests
from smidgen.training.network import checkpointing

MIXED = "mixed batches"  # the path of a run that is trained so
COPYING = ("full", "vpt")  # vpt: of the final layer

Result = Delta | Exception

logger = logging.getLogger(__name__)


class _Modes(NamedTuple):
    """What PyTorch keeps for a thread, and a greenlet must find again."""

    gradients: bool
    autocast: bool
    dtype: torch.dtype

    @classmethod
    def now(cls, kind: str) -> _Modes:
        """Those that hold."""
        return cls(
            torch.is_grad_enabled(),
            torch.is_autocast_enabled(kind),
            torch.get_autocast_dtype(kind),
        )

    def set(self, kind: str) -> None:
        """Let these hold."""
        torch.set_grad_enabled(self.gradients)
        torch.set_autocast_enabled(kind, self.autocast)
        torch.set_autocast_dtype(kind, self.dtype)


@dataclass(eq=False)
class Place:
    """One training among several. What it asks stands in `asked`, or it waits for gradients."""

    run: Callable[[Place], Delta]
    kind: str
    stop: StopRequest
    delta: Delta | None = None
    asked: tuple[Tensor, Tensor, Condition] | None = None
    modes: _Modes | None = None
    result: Result | None = None
    _greenlet: greenlet.greenlet = field(init=False)

    def __post_init__(self) -> None:
        self._greenlet = greenlet.greenlet(self._train)

    def network(self, delta: Delta) -> Network:
        """What this training calls for the network with its delta."""
        self.delta = delta

        def ask(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            self.asked = (x, t, condition)
            return self.wait()

        return ask

    def waiting(self, accelerator: runtime.Accelerator) -> Any:
        """The accelerator, whose `backward` comes back when the delta has its gradients."""
        return _Waiting(accelerator, self)

    def go_on(self, *given: Any) -> None:
        """Run to where it next asks or waits, or to its end."""
        self.asked = None
        outside = _Modes.now(self.kind)
        try:
            self._greenlet.switch(*given)
        finally:
            outside.set(self.kind)

    def end(self) -> None:
        """No more is trained."""
        if not self._greenlet.dead:
            self._greenlet.throw(greenlet.GreenletExit)

    def wait(self) -> Any:
        """Let the others run, until there is something to go on with."""
        own = self.modes = _Modes.now(self.kind)
        engine = greenlet.getcurrent().parent
        assert engine is not None, "trainings are begun by `train_mixed`"
        given = engine.switch()
        own.set(self.kind)
        return given

    def _train(self) -> None:
        try:
            self.result = self.run(self)
        except Exception as error:
            if not isinstance(error, SmidgenError):
                logger.exception("a training failed")
            self.result = error


class _Waiting:
    """An accelerator, but for `backward`."""

    def __init__(self, accelerator: runtime.Accelerator, place: Place) -> None:
        self._own, self._place = accelerator, place

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def backward(self, loss: Tensor) -> None:
        """To the output of the network, and from there with all that share the network."""
        self._own.backward(loss)
        self._place.wait()


def not_mixable(config: RunConfig) -> str | None:
    """Why such trainings cannot be in mixed batches; None if they can."""
    training = config.training
    for name in parts_of(config.method):
        if name in COPYING:
            return f"{name} trains copies of weights, which all images of a batch run through"
    if config.encodes_in_step:
        return "text encoders read texts in the step"
    for name, usual in (
        ("objective", "denoising"),
        ("compile", False),
        ("frozen_precision", "exact"),
        ("activations", "exact"),
    ):
        if getattr(training, name) != usual:
            return f"{name} is {getattr(training, name)}"
    return None


def train_mixed(
    base: Base, config: RunConfig, runs: Sequence[Callable[[Place], Delta]]
) -> list[Result]:
    """The results of trainings of deltas of one kind, each called with its place; `config` is what
    they share, which has nothing that is `not_mixable`. The error of one is its result, and the
    others go on.
    """
    denoiser = base.denoiser
    flags = {parameter: parameter.requires_grad for parameter in denoiser.parameters()}
    denoiser.requires_grad_(False)
    recomputed = config.training.gradient_checkpointing
    silent = replace(config.training, trackers=())
    try:
        with (
            stop_requests() as stop,
            checkpointing(denoiser, recomputed),
            runtime.cpu_threads(config.training.num_threads),
            # what accelerate keeps for the process outlasts each of them
            runtime.open_runtime(silent, base.device, config.output, 0),
        ):
            places = [Place(run, base.device.type, stop) for run in runs]
            _Mixed(base, config, places).train()
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
    found = [place.result for place in places]
    assert None not in found, "all have ended"
    return [result for result in found if result is not None]


class _Mixed:
    """The network that all places share, and the bank that holds their deltas."""

    def __init__(self, base: Base, config: RunConfig, places: Sequence[Place]) -> None:
        self._base, self._config, self._places = base, config, places
        self._call = calling(base.family, base.denoiser, config.training.embedded_guidance)
        self._bank: Bank | None = None
        self._deltas: list[Delta] = []

    def train(self) -> None:
        """Until all have ended."""
        try:
            for place in self._places:
                place.go_on()  # to its first call: images are read and encoded one after the other
            while asking := [place for place in self._places if place.asked is not None]:
                for together in _alike(asking):
                    self._tried(together)
        finally:
            for place in self._places:
                place.end()

    def _tried(self, places: Sequence[Place]) -> None:
        """A step; what fails for all of these ends them, and the others go on."""
        try:
            self._step(places)
        except Exception as error:
            logger.exception("a mixed batch of %d deltas failed", len(places))
            for place in places:
                place.end()
                place.asked = None
                place.result = place.result or error

    def _step(self, places: Sequence[Place]) -> None:
        """One call of the network and, where gradients are asked for, one backward pass."""
        kind, modes = self._base.device.type, _modes_of(places[0])
        slots = self._fill(places)
        asked = [place.asked for place in places if place.asked is not None]
        sizes = [len(x) for x, _, _ in asked]
        self._chosen.choose(slots.repeat_interleave(torch.tensor(sizes)))
        outside = _Modes.now(kind)
        with acting(self._bank, self._base.denoiser, fast=self._config.training.fast):
            modes.set(kind)
            try:
                output = self._call(
                    torch.cat([x for x, _, _ in asked]),
                    torch.cat([t for _, t, _ in asked]),
                    {
                        name: torch.cat([condition[name] for _, _, condition in asked])
                        for name in asked[0][2]
                    },
                )
            finally:
                outside.set(kind)
            parts = [part.detach() for part in output.split(sizes)]
            if modes.gradients:
                # the deltas still act: until it waits, a training computes its loss and no more
                for place, part in zip(places, parts, strict=True):
                    place.go_on(part.requires_grad_(True))
                self._backward(parts, output)
        for place, part in zip(places, parts, strict=True):
            if not modes.gradients:
                place.go_on(part)
            elif place.result is None:
                place.go_on()

    def _backward(self, parts: Sequence[Tensor], output: Tensor) -> None:
        """The gradients of all parts of the output to all deltas; what ended has given none."""
        given = [torch.zeros_like(one) if one.grad is None else one.grad for one in parts]
        output.backward(torch.cat(given))
        for name, mixed in self._chosen.edits.items():
            mixed.give_gradients([delta.edits[name] for delta in self._deltas])

    @property
    def _chosen(self) -> Bank:
        assert self._bank is not None, "the deltas are in a bank"
        return self._bank

    def _fill(self, places: Sequence[Place]) -> Tensor:
        """The values of these deltas, as they are now, into the bank; their slots."""
        if self._bank is None:
            self._deltas = [one.delta for one in self._places if one.delta is not None]
            self._bank = Bank(self._deltas, trainable=True)
        slots = []
        for place in places:
            assert place.delta is not None, "it has asked with its delta"
            slots.append(next(n for n, one in enumerate(self._deltas) if one is place.delta))
            for name, mixed in self._bank.edits.items():
                mixed.fill(slots[-1], place.delta.edits[name])
        return torch.tensor(slots)


def _modes_of(place: Place) -> _Modes:
    assert place.modes is not None, "it has asked"
    return place.modes


def _alike(places: Sequence[Place]) -> Iterator[list[Place]]:
    """Those that can be in one call."""
    found: dict[object, list[Place]] = {}
    for place in places:
        if place.asked is not None:
            x, _, condition = place.asked
            forms = sorted((name, value.shape[1:]) for name, value in condition.items())
            form = (_modes_of(place), x.shape[1:], str(forms))
            found.setdefault(form, []).append(place)
    yield from found.values()
