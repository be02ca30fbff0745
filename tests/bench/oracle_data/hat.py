"""Transformers of HAT by the ten averaged features that its latency files hold.

Wang et al., 2020. Widths of attention are 64 per head; layers are alike because only their means
are known. Choices are the values found in the file.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from latency_tables.arch import Decision
from latency_tables.cost_table import CostTable, Factor
from tests.bench.oracle_data.layers import Part, columns
from tests.bench.oracle_data.series import Columns, Series, Space, decision, indices, series_of

LABELS = (
    *("encoder_embed_dim", "encoder_layer_num", "encoder_ffn_embed_dim_avg"),
    *("encoder_self_attention_heads_avg", "decoder_embed_dim", "decoder_layer_num"),
    *("decoder_ffn_embed_dim_avg", "decoder_self_attention_heads_avg"),
    *("decoder_ende_attention_heads_avg", "decoder_arbitrary_ende_attn_avg"),
)
_PARTS = ("encoder", "decoder")
_HEAD, _TOKENS = 64, 30


def reads(file: Columns) -> bool:
    """Whether a file is of this space."""
    return {*LABELS, "latency_mean_encoder", "latency_mean_decoder"} <= set(file)


def read(file: Columns) -> list[Series]:
    """Encoder, decoder and their sum, for every task and device (or session) of the file."""
    place = next((name for name in ("device", "session") if name in file), None)
    n = len(file["latency_mean_encoder"])
    names = np.array(
        [
            "-".join(
                str(file[name][i]) for name in ("task", place) if name is not None and name in file
            )
            for i in range(n)
        ]
    )
    texts = np.stack([_texts(file[label]) for label in LABELS], axis=1)
    decisions = [
        decision(label, sorted(set(texts[:, i].tolist()), key=float))
        for i, label in enumerate(LABELS)
    ]
    genes = np.stack([indices(texts[:, i], d.choices) for i, d in enumerate(decisions)], axis=1)
    built = space(decisions)
    parts = {part: file[f"latency_mean_{part}"].astype(np.float64) for part in _PARTS}
    parts["total"] = parts["encoder"] + parts["decoder"]
    return [
        series_of(f"hat/{name}/{part}", built, genes[names == name], latency[names == name])
        for name in sorted(set(names.tolist()))
        for part, latency in parts.items()
    ]


def space(decisions: list[Decision]) -> Space:
    """The space with the products of embedding, layers and inner width."""
    factors = []
    for part in _PARTS:
        embed, layers = f"{part}_embed_dim", f"{part}_layer_num"
        inner = [f"{part}_ffn_embed_dim_avg", f"{part}_self_attention_heads_avg"]
        inner += ["decoder_ende_attention_heads_avg"] if part == "decoder" else []
        for label in inner:
            scope = [d for name in (embed, layers, label) for d in decisions if d.label == name]
            factors.append(_factor(scope))
    factors.append(Factor(name="outside", labels=(), values=Part().row()))
    return Space(name="hat", table=CostTable(decisions, columns(), factors))


def _factor(scope: list[Decision]) -> Factor:
    sizes = [[float(choice) for choice in d.choices] for d in scope]
    values = np.stack(
        [
            np.stack(
                [
                    np.stack([_layers(e, n, width, scope[2].label) for width in sizes[2]])
                    for n in sizes[1]
                ]
            )
            for e in sizes[0]
        ]
    )
    return Factor(name=scope[2].label, labels=tuple(d.label for d in scope), values=values)


def _layers(embed: float, layers: float, width: float, label: str) -> NDArray[np.float64]:
    """``layers`` alike: two products of a feed-forward net, or four of an attention."""
    inner = round(width if "ffn" in label else width * _HEAD)
    part = (
        Part().linear(round(embed), inner, rows=_TOKENS).linear(inner, round(embed), rows=_TOKENS)
    )
    if "ffn" not in label:
        part.linear(round(embed), inner, rows=_TOKENS).linear(round(embed), inner, rows=_TOKENS)
    return part.row() * layers


def _texts(values: NDArray[np.generic]) -> NDArray[np.str_]:
    return np.array([f"{float(value):.6g}" for value in values.tolist()])
