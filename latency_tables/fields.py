"""Read JSON objects that somebody else wrote: every field is named, typed and bounded.

Table files and replies of boards are hostile until they went through here: a wrong type, a missing
or an unknown field, a number that is not finite, a text or an object of absurd size is a
:class:`CorruptTableError` that names the field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, NoReturn

from latency_tables.errors import CorruptTableError

MAX_TEXT = 16_384
"""Longest text in characters."""

MAX_OBJECT = 262_144
"""Largest free-form object (runtime, provenance, identity, state) in characters of JSON."""

MAX_INTEGER = 2**63 - 1
"""What SQLite and every other reader can hold."""


def parse_json(text: str) -> Any:
    """Decode JSON, refusing NaN and infinities. Raises CorruptTableError.

    >>> parse_json('{"threads": 2}')
    {'threads': 2}
    """

    def refuse(constant: str) -> NoReturn:
        raise CorruptTableError(f"{constant} is not a JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise CorruptTableError(f"not JSON: {error}") from None


class Fields:
    """A JSON object whose fields are taken one by one; :meth:`end` refuses what is left.

    >>> fields = Fields({"threads": 2, "colour": "red"}, "measurement")
    >>> fields.integer("threads", minimum=1)
    2
    >>> fields.end()
    Traceback (most recent call last):
    latency_tables.errors.CorruptTableError: measurement has unknown fields: colour
    """

    def __init__(self, data: object, what: str) -> None:
        if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
            raise CorruptTableError(f"{what} is a JSON object, not {_shown(data)}")
        self._data: dict[str, Any] = dict(data)
        self._what = what

    def fail(self, name: str, problem: str) -> NoReturn:
        """Raise CorruptTableError about one field."""
        raise CorruptTableError(f"{self._what}: field {name!r} {problem}")

    def take(self, name: str) -> Any:
        """The raw value of a field that must be there."""
        if name not in self._data:
            self.fail(name, "is missing")
        return self._data.pop(name)

    def optional(self, name: str) -> bool:
        """Whether a field holds something; a null or absent one is dropped."""
        if self._data.get(name) is None:
            self._data.pop(name, None)
            return False
        return True

    def text(self, name: str, *, empty: bool = True) -> str:
        """A text of bounded length."""
        value = self.take(name)
        if not isinstance(value, str) or len(value) > MAX_TEXT or not (value or empty):
            bound = f"{0 if empty else 1} to {MAX_TEXT} characters"
            self.fail(name, f"is {_shown(value)}; must be a text of {bound}")
        return value

    def one_of(self, name: str, allowed: Iterable[str]) -> str:
        """One of a few texts."""
        value, choices = self.take(name), tuple(allowed)
        if value not in choices:
            self.fail(name, f"is {_shown(value)}; must be one of {', '.join(choices)}")
        return str(value)

    def integer(self, name: str, *, minimum: int = 0) -> int:
        """An integer; floats and booleans are refused."""
        return self._integer(name, self.take(name), minimum)

    def optional_integer(self, name: str, *, minimum: int = 0) -> int | None:
        """An integer or null."""
        return self.integer(name, minimum=minimum) if self.optional(name) else None

    def integers(self, name: str, *, minimum: int = 0) -> tuple[int, ...]:
        """A list of integers."""
        return tuple(self._integer(name, value, minimum) for value in self.items(name))

    def number(self, name: str) -> float:
        """A finite number."""
        value = self.take(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(name, f"is {_shown(value)}; must be a finite number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self.fail(name, f"is {_shown(value)}; must be a finite number")
        return number

    def optional_number(self, name: str) -> float | None:
        """A finite number or null."""
        return self.number(name) if self.optional(name) else None

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.take(name)
        if not isinstance(value, bool):
            self.fail(name, f"is {_shown(value)}; must be true or false")
        return value

    def items(self, name: str) -> list[Any]:
        """A list of anything."""
        value = self.take(name)
        if not isinstance(value, list | tuple):
            self.fail(name, f"is {_shown(value)}; must be a list")
        return list(value)

    def object(self, name: str) -> dict[str, Any]:
        """A free-form JSON object of bounded size."""
        value = self.take(name)
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            self.fail(name, f"is {_shown(value)}; must be an object")
        try:
            text = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            self.fail(name, f"is not plain JSON: {error}")
        if len(text) > MAX_OBJECT:
            self.fail(name, f"is {len(text)} characters of JSON; at most {MAX_OBJECT} are allowed")
        return dict(value)

    def schema(self, expected: int) -> None:
        """Take the field ``schema`` and refuse a version this code does not read."""
        found = self.take("schema")
        if found != expected or isinstance(found, bool):
            self.fail("schema", f"is {_shown(found)}; this version reads schema {expected}")

    def end(self) -> None:
        """Refuse fields that nobody asked for."""
        if self._data:
            names = ", ".join(sorted(self._data)[:8])
            raise CorruptTableError(f"{self._what} has unknown fields: {names[:200]}")

    def _integer(self, name: str, value: Any, minimum: int) -> int:
        plain = isinstance(value, int) and not isinstance(value, bool)
        if not plain or not minimum <= value <= MAX_INTEGER:
            self.fail(name, f"is {_shown(value)}; must be an integer from {minimum}")
        return int(value)


def _shown(value: object) -> str:
    """A value as it may stand in a message: escaped and short."""
    try:
        text = ascii(value)
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
