"""Architectures as plain data: what was decided, and nothing else.

An :class:`Arch` maps the label of each decision to the chosen value. It knows neither torch nor
the space it comes from, so tables, agents and reports can carry it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from latency_tables.errors import InvalidArchError

Choice = str | int | float
"""A chosen value: an operator's name, a width, a kernel size, a ratio."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One question that an architecture answers, and the answers that are allowed.

    >>> Decision(label="block01", choices=("k3", "k5")).index("k5")
    1
    """

    label: str
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        if not self.choices:
            raise InvalidArchError(f"decision {self.label!r} has no choices")
        if len(set(self.choices)) != len(self.choices):
            raise InvalidArchError(f"decision {self.label!r} names a choice twice: {self.choices}")

    def index(self, choice: Choice) -> int:
        """Position of ``choice``. Raises InvalidArchError naming what is allowed."""
        try:
            return self.choices.index(choice)
        except ValueError:
            allowed = ", ".join(map(repr, self.choices))
            raise InvalidArchError(
                f"{self.label!r} cannot be {choice!r}; allowed: {allowed}"
            ) from None


class Arch(Mapping[str, Choice]):
    """A frozen, hashable mapping label → choice.

    Equality ignores the order of labels; JSON keeps the order in which they were given.

    >>> arch = Arch({"block01": "k3", "width": 32})
    >>> arch == Arch.from_json(arch.to_json()), len({arch, Arch(dict(arch))})
    (True, 1)
    >>> arch.replace(width=48)["width"]
    48
    """

    __slots__ = ("_choices", "_hash")

    def __init__(self, choices: Mapping[str, Choice]) -> None:
        self._choices = dict(choices)
        self._hash = hash(frozenset(self._choices.items()))

    def __getitem__(self, label: str) -> Choice:
        return self._choices[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self._choices)

    def __len__(self) -> int:
        return len(self._choices)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arch) and self._choices == other._choices

    def __repr__(self) -> str:
        return f"Arch({self._choices!r})"

    def __reduce__(self) -> tuple[type[Arch], tuple[dict[str, Choice]]]:
        return Arch, (self._choices,)

    def replace(self, **choices: Choice) -> Arch:
        """A copy with some choices replaced."""
        return Arch({**self._choices, **choices})

    def genes(self, decisions: Sequence[Decision]) -> tuple[int, ...]:
        """Index of each choice, in the order of ``decisions``."""
        return tuple(d.index(self._choices[d.label]) for d in decisions)

    @classmethod
    def from_genes(cls, decisions: Sequence[Decision], genes: Sequence[int]) -> Arch:
        """The architecture whose i-th decision takes its ``genes[i]``-th choice."""
        if len(genes) != len(decisions):
            raise InvalidArchError(f"{len(genes)} genes given for {len(decisions)} decisions")
        for decision, gene in zip(decisions, genes, strict=True):
            if not 0 <= gene < len(decision.choices):
                raise InvalidArchError(
                    f"gene {gene} of {decision.label!r} is outside 0..{len(decision.choices) - 1}"
                )
        return cls({d.label: d.choices[g] for d, g in zip(decisions, genes, strict=True)})

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self._choices, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Arch:
        """Read what :meth:`to_json` wrote. Raises InvalidArchError."""
        try:
            choices = json.loads(text)
        except json.JSONDecodeError as error:
            raise InvalidArchError(f"an architecture is not JSON: {error}") from None
        return cls.from_dict(choices)

    @classmethod
    def from_dict(cls, choices: object) -> Arch:
        """Read a decoded JSON object. Raises InvalidArchError."""
        if not isinstance(choices, dict) or not all(
            isinstance(k, str) and isinstance(v, str | int | float) and not isinstance(v, bool)
            for k, v in choices.items()
        ):
            raise InvalidArchError("an architecture is a JSON object of label: text or number")
        return cls(choices)


def check_arch(decisions: Sequence[Decision], arch: Mapping[str, Choice]) -> None:
    """Raise InvalidArchError unless ``arch`` answers every decision with an allowed choice."""
    labels = {d.label for d in decisions}
    missing, unknown = labels - set(arch), set(arch) - labels
    if missing or unknown:
        raise InvalidArchError(
            "an architecture must answer every decision once"
            + (f"; missing: {', '.join(sorted(missing))}" if missing else "")
            + (f"; unknown: {', '.join(sorted(unknown))}" if unknown else "")
        )
    for decision in decisions:
        decision.index(arch[decision.label])
