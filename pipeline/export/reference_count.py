"""MACs of a materialised network as fvcore counts them: the reference beside our cost tables.

fvcore traces the network and counts multiply-adds of every operator it knows, batch norm
included. The paper's figures count convolutions and matrix products only, so both numbers are
given.
"""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import dataclass

import torch
from torch import nn

COUNTED = ("conv", "addmm", "linear", "matmul", "bmm", "einsum")
"""fvcore's names of the operators that count as MACs here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceCount:
    """``macs``: convolutions and matrix products; ``total``: all that fvcore counts."""

    macs: int
    total: int


def count_with_fvcore(network: nn.Module, input_shape: tuple[int, int, int]) -> ReferenceCount:
    """Count one image (C, H, W) through a network that is not changed.

    >>> network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2))
    >>> count = count_with_fvcore(network, (1, 4, 4))
    >>> count.macs, count.total
    (288, 352)
    """
    with warnings.catch_warnings():
        # fvcore, frozen since 2022, imports torch.jit, which newer torch deprecates
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        counted = copy.deepcopy(network).cpu().eval()
        analysis = FlopCountAnalysis(counted, torch.zeros(1, *input_shape))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
        by_operator = analysis.by_operator()
    return ReferenceCount(
        macs=int(sum(by_operator[name] for name in COUNTED)), total=int(sum(by_operator.values()))
    )
