"""From ``stability.json``, ``rank.json`` and ``follow.json`` to what the report shows of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from latency_tables.arch import Arch
from pipeline.ranking.stability import sentence
from pipeline.report.rank_evidence import (
    FollowedRow,
    RankedAgainst,
    RankEvidence,
    RankStability,
    Tie,
)
from pipeline.run.folder import RunFolder
from pipeline.search.targets import BOARDS

SHIFTED = "shifted.safetensors"


def rank_evidence(folder: RunFolder, hashes: Mapping[str, str]) -> RankEvidence:
    """What the folder knows of the order of networks; whatever is missing is left out.

    So is what other weights once gave: ``hashes`` are those of the stages' files by name.
    """
    paths = [folder.file("stability.json"), *sorted(folder.path.glob(f"{BOARDS}/*/stability.json"))]
    return RankEvidence(
        stability=tuple(
            _stability("" if path.parent == folder.path else path.parent.name,
                       json.loads(path.read_text()))
            for path in paths
            if path.exists()
        ),
        against=_against(_json(folder, "rank.json"), hashes),
        followed=_followed(_json(folder, "follow.json"), hashes),
    )  # fmt: skip


def _json(folder: RunFolder, name: str) -> Any:
    path = folder.file(name)
    return json.loads(path.read_text()) if path.exists() else None


def _stability(name: str, told: dict[str, Any]) -> RankStability:
    networks = told["networks"]
    return RankStability(
        name=name,
        words=sentence(told),
        significant=told["significant"],
        ties=tuple(
            Tie(
                arch=Arch.from_dict(networks[tie["index"]]["arch"]),
                accuracy=networks[tie["index"]]["accuracy"],
                difference=tie["value"],
                low=tie["low"],
                high=tie["high"],
            )
            for tie in told["ties"]
        ),
    )


def _against(told: Any, hashes: Mapping[str, str]) -> RankedAgainst | None:
    if told is None or hashes.get(told["weights"]["file"]) != told["weights"]["sha256"]:
        return None
    report = told["report"]
    tau = report["tau_b"]
    return RankedAgainst(
        source=told["truth"]["source"],
        n_images=told["scoring"]["n_images"],
        tau=tau["value"],
        low=tau["low"],
        high=tau["high"],
        level=tau["level"],
        baselines=tuple((name, b["tau_b"]) for name, b in report["baselines"].items()),
        points=tuple((n["score"], n["truth"]) for n in told["networks"]),
        rank_by=told["scoring"].get("rank_by", "accuracy"),
    )


def _followed(told: Any, hashes: Mapping[str, str]) -> tuple[FollowedRow, ...]:
    if told is None or hashes.get(SHIFTED) != told["weights_sha256"]:
        return ()
    return tuple(
        FollowedRow(
            generations=row["generations"],
            good=tuple(row["good"]),
            random=tuple(row["random"]),
            global_count=row["global_count"],
            local_tau=row["local_tau"],
        )
        for row in told["rows"]
    )
