"""What a topology's `changes` may say: links faster or slower, or gone, after the build is made."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from simulator.spec.fields import Spec, refuse

Factor = Annotated[float, Field(gt=0, le=1000)]


class Change(Spec):
    """One change: of all links of a kind, all links of a node, or one link, by the key that it
    stands under (``network``, ``spine0``, ``leaf0 -> spine1``, ``leaf0 <-> spine1`` for both ways).

    ``bandwidth`` and ``latency`` are factors; ``removed``: the links are gone.
    """

    bandwidth: Factor = 1.0
    latency: Factor = 1.0
    removed: bool = False

    @model_validator(mode="after")
    def _says_one_thing(self) -> Change:
        found: list[tuple[tuple[str | int, ...], str]] = []
        if self.removed and (self.bandwidth, self.latency) != (1.0, 1.0):
            found.append((("removed",), "goes without bandwidth and latency"))
        refuse("Change", found)
        return self
