"""Architectures as tables write them: the notations of the benchmarks, JSON, and plain lists.

=====================================================  ===========================================
``22212220``                                           a digit per decision, in the space's order
``|none~0|+|skip_connect~0|nor_conv_3x3~1|+|...|``     NAS-Bench-201's own
``{"layer1": "mb3_k3", ...}``                          JSON, as in ``front.json``
``mb3_k3 identity ...``, ``1, 0, ...``                 choices, or their numbers from 0
=====================================================  ===========================================

In a list choices win over numbers: where the choices of a space are numbers themselves, ``2 3`` are
the choices 2 and 3. Torch-free but for NAS-Bench-201's strings, whose space is imported then.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from latency_tables.arch import Arch, Decision, check_arch
from latency_tables.errors import InvalidArchError

_SEPARATORS = re.compile(r"[\s,;:]+")
_DIGITS = re.compile(r"[0-9]+")


def parse_arch(text: str, decisions: Sequence[Decision]) -> Arch:
    """Read one architecture in whichever notation it is written.

    Raises:
        InvalidArchError: the text is of no notation, or not of this space; says what is allowed.

    >>> decisions = [Decision(label=f"layer{i}", choices=("identity", "k3", "k5")) for i in (1, 2)]
    >>> parse_arch("02", decisions) == parse_arch("identity, k5", decisions)
    True
    """
    text = text.strip()
    if text.startswith("{"):
        found = Arch.from_json(text)
    elif text.startswith("|") and "~" in text:
        from pipeline.spaces.nasbench201 import arch_of_string

        found = arch_of_string(text)
    elif _DIGITS.fullmatch(text) and len(decisions) > 1:
        found = _of_digits(text, decisions)
    else:
        found = _of_list(_SEPARATORS.split(text), decisions)
    check_arch(decisions, found)
    return found


def arch_of_columns(values: Sequence[object], decisions: Sequence[Decision]) -> Arch:
    """Read one architecture from a value per decision: choices, or their numbers from 0.

    Raises:
        InvalidArchError: a value is neither.
    """
    return _of_list([str(value).strip() for value in values], decisions)


def _of_digits(text: str, decisions: Sequence[Decision]) -> Arch:
    if len(text) != len(decisions):
        zeros = " (were leading zeros lost?)" if len(text) < len(decisions) else ""
        raise InvalidArchError(
            f"{text!r} has {len(text)} digits, the space {len(decisions)} decisions{zeros}"
        )
    return Arch.from_genes(decisions, [int(digit) for digit in text])


def _of_list(words: Sequence[str], decisions: Sequence[Decision]) -> Arch:
    if len(words) != len(decisions):
        raise InvalidArchError(
            f"{len(words)} values given for {len(decisions)} decisions; allowed are a digit or a "
            "choice per decision, JSON, and the notation of NAS-Bench-201"
        )
    by_name = [{str(choice): choice for choice in decision.choices} for decision in decisions]
    if all(word in known for word, known in zip(words, by_name, strict=True)):
        return Arch(
            {d.label: known[w] for d, known, w in zip(decisions, by_name, words, strict=True)}
        )
    if all(_DIGITS.fullmatch(word) for word in words):
        return Arch.from_genes(decisions, [int(word) for word in words])
    for word, known, decision in zip(words, by_name, decisions, strict=True):
        if word not in known and not _DIGITS.fullmatch(word):
            decision.index(word)  # raises, naming what is allowed
    raise InvalidArchError("choices and numbers of choices are mixed; give one of the two")
