"""What breaks while requests are served, and when: the timeline of faults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict, model_validator

from simulator.spec.fields import Latency, Spec, refuse
from simulator.spec.units import parse_quantity

Member = Literal["replicas", "reload", "shrink", "drain"]
"""What a group does that has lost a GPU."""

HOST = "host"
"""Weights come from host memory over the links of the graph."""

Found = list[tuple[tuple[str | int, ...], str]]


def _weights_from(value: object) -> object:
    return value if value == HOST else parse_quantity(value, "bandwidth")


WeightsFrom = Annotated[str | float, BeforeValidator(_weights_from)]


class Fault(Spec):
    """One fault, at a time (``at``, for so long: ``for``; ``null`` is for good) or again and again
    (``mtbf`` and ``mttr``, the means of exponential times between repair and failure and back).

    ``name`` is a node of the topology's graph (``gpu3``, ``nic0``, ``leaf1``), a link (``gpu3 ->
    nvswitch0``, or ``gpu3 <-> nvswitch0`` for both directions) or a host (``node0``). ``do``:
    ``down``; ``degrade``, links keep the share ``factor`` of their bandwidth; ``slow``, compute
    takes ``factor`` times as long, with ``spread`` also a lognormal factor of mean 1 drawn for
    every step; ``up`` ends what earlier entries did to the same name. A GPU that comes back takes
    ``cold_start`` more in its first step, and loads its weights before it (``load_from``: ``host``,
    or a bandwidth; ``null``: they are still there).
    """

    at_s: Latency | None = Field(default=None, alias="at")
    mtbf_s: Latency | None = Field(default=None, alias="mtbf")
    mttr_s: Latency | None = Field(default=None, alias="mttr")
    what: Literal["gpu", "nic", "link", "switch", "node"]
    name: Annotated[str, Field(min_length=1)]
    do: Literal["down", "up", "degrade", "slow"] = "down"
    for_s: Latency | None = Field(default=None, alias="for")
    factor: Annotated[float, Field(gt=0, le=1000)] | None = None
    spread: Annotated[float, Field(ge=0, le=3)] = 0.0
    cold_start_s: Latency = Field(default=0.0, alias="cold_start")
    load_from: WeightsFrom | None = None

    @model_validator(mode="after")
    def _fits(self) -> Fault:
        found = self._times()
        if self.do == "degrade" and not (self.factor is not None and self.factor < 1):
            found.append((("factor",), "the share of the bandwidth that is left: above 0, below 1"))
        if self.do == "slow" and self.factor is None:
            found.append((("factor",), "how many times as long compute takes, for example 2"))
        if self.do in ("down", "up") and self.factor is not None:
            found.append((("factor",), "goes with do: degrade or slow; leave it out"))
        if self.do == "slow" and self.what not in ("gpu", "node"):
            found.append((("do",), f"a {self.what} does not compute; write degrade or down"))
        if self.spread and self.do != "slow":
            found.append((("spread",), "goes with do: slow; leave it out"))
        if self.do != "down" or self.what not in ("gpu", "node"):
            for key, value in (("cold_start", self.cold_start_s), ("load_from", self.load_from)):
                if value:
                    found.append(((key,), "goes with a gpu or node that goes down; leave it out"))
        refuse("Fault", found)
        return self

    def _times(self) -> Found:
        found: Found = []
        again = {"mtbf": self.mtbf_s, "mttr": self.mttr_s}
        if self.at_s is None:
            for key, value in again.items():
                if value is None:
                    found.append(((key,), "give at, or both mtbf and mttr"))
                elif value == 0.0:
                    found.append(((key,), "must be above 0"))
            if self.for_s is not None:
                found.append((("for",), "goes with at; mttr says how long here"))
            if self.do == "up":
                found.append((("do",), "up goes with at; mttr says when here"))
            return found
        twice = [key for key, value in again.items() if value is not None]
        if twice:
            found.append(((twice[0],), "give either at, or mtbf and mttr"))
        if self.for_s == 0.0:
            found.append((("for",), "must be above 0; leave it out for good"))
        if self.do == "up" and self.for_s is not None:
            found.append((("for",), "up is for good; leave it out"))
        return found


def _in_order(faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    found: Found = []
    latest, hit = 0.0, set()
    for index, fault in enumerate(faults):
        if fault.do == "up" and fault.name not in hit:
            found.append(((index, "name"), f"nothing happens to {fault.name!r} before it is up"))
        hit.add(fault.name)
        if fault.at_s is None:
            continue
        if fault.at_s < latest:
            found.append(
                ((index, "at"), f"{fault.at_s:g} s is before the {latest:g} s of an entry above it")
            )
        latest = max(latest, fault.at_s)
    refuse("Faults", found)
    return faults


Faults = Annotated[tuple[Fault, ...], Strict(False), AfterValidator(_in_order)]


def _one(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Members = Annotated[tuple[Member, ...], Field(min_length=1), Strict(False), BeforeValidator(_one)]
