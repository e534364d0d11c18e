"""What `deepseek_v3.yaml` may say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from simulator.errors import InputError
from simulator.spec.fields import Count, Price, Spec, refuse
from simulator.studies.common.spec import Positive, Share, StudySpec, Wholes, read_study

FILE = Path(__file__).with_name("deepseek_v3.yaml")

Texts = Annotated[tuple[str, ...], Field(strict=False)]


class Prefill(Spec):
    """Prefill servers. tokens: of a GPU in a step; lengths: of prompts; judged: the one by which
    gains are judged.
    """

    topology: str
    workload: str
    tokens: Count
    lengths: Wholes
    judged: Count

    @model_validator(mode="after")
    def _whole(self) -> Prefill:
        found: list[tuple[tuple[str | int, ...], str]] = [
            (("lengths",), f"{self.tokens} tokens are no whole number of prompts of {length}")
            for length in self.lengths
            if self.tokens % length
        ]
        if self.judged not in self.lengths:
            found.append((("judged",), f"write one of {', '.join(map(str, self.lengths))}"))
        refuse("Prefill", found)
        return self


class Decode(Spec):
    """Decode servers. sequences: of a GPU, each with `context` keys; judged: as many by which gains
    are judged; steps: that are simulated, each with other tokens.
    """

    topology: str
    workload: str
    sequences: Wholes
    judged: Count
    context: Count
    steps: Count
    contexts: Wholes

    @model_validator(mode="after")
    def _known(self) -> Decode:
        found: list[tuple[tuple[str | int, ...], str]] = []
        if self.judged not in self.sequences:
            found.append((("judged",), f"write one of {', '.join(map(str, self.sequences))}"))
        refuse("Decode", found)
        return self


class Own(Spec):
    """DeepSeek's own servers: decode of `ep` GPUs on `nodes`; per_user: token/s of a sequence, from
    and to; input, output: token/s of a node, `cached` of the input not computed.
    """

    topology: str
    nodes: Count
    spines: Count
    ep: Count
    context: Count
    sequences: Wholes
    per_user: Annotated[tuple[Positive, Positive], Field(strict=False)]
    input: Positive
    cached: Share
    output: Positive


class Variant(Spec):
    """Something that is not in the runs, put in: overrides, prompts of a law of lengths with the
    same mean, another routing; phase: of the only one that it is for.
    """

    name: str
    phase: Literal["prefill", "decode"] | None = None
    set: Texts = ()
    lengths: Literal["fixed", "exponential"] = "fixed"
    routing: str | None = None


class Assumptions(Spec):
    """What is simulated. law: of the routing, where no file is given."""

    law: str
    prefill: Prefill
    decode: Decode
    own: Own
    price_per_hour: Price = Field(alias="price")
    variants: Annotated[tuple[Variant, ...], Field(strict=False)]


class DeepSeek(StudySpec):
    """The study."""

    assumptions: Assumptions


def load_study(overrides: Sequence[str] = (), path: Path = FILE) -> DeepSeek:
    """The study with `--set` overrides; InputError with one line per fault."""
    return read_study(DeepSeek, path, overrides)


def recorded(routing: str) -> str:
    """A routing that is given in place of the law, if it is one; InputError if not."""
    from simulator.routing.laws import is_law

    if not is_law(routing) and not Path(routing).expanduser().is_file():
        raise InputError(
            f"--routing {routing}: no such file; write expert loads, a recording, or a law as "
            "zipf:0.79"
        )
    return routing
