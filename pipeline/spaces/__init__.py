"""Search spaces: what may be chosen, and the networks that follow from a choice.

>>> space = load_space("shufflenetv2", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
>>> len(space.decisions), space.decisions[0].choices
(10, ('k3', 'k5', 'k7', 'xception'))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pipeline.named import load_factory, require_known

if TYPE_CHECKING:
    from pipeline.spaces.base import Space

# name → module:factory; imported on use, because torch takes a second
SPACES = {
    "shufflenetv2": "pipeline.spaces.shufflenetv2:shufflenetv2",
    "shufflenetv2_scales": "pipeline.spaces.shufflenetv2_scales:shufflenetv2_scales",
    "nasbench_macro": "pipeline.spaces.nasbench_macro:nasbench_macro",
    "nasbench201": "pipeline.spaces.nasbench201:nasbench201",
    "mobilenetv2": "pipeline.spaces.mobilenetv2:mobilenetv2",
    "mobilenetv2_widths": "pipeline.spaces.mobilenetv2_widths:mobilenetv2_widths",
    "proxyless": "pipeline.spaces.proxyless:proxyless",
    "autoformer": "pipeline.spaces.autoformer:autoformer",
    "attentivenas": "pipeline.spaces.elastic_cnn:attentivenas",
    "bignas": "pipeline.spaces.elastic_cnn:bignas",
}


def require_space(name: str) -> None:
    """Raise UsageError, naming those that exist, unless there is a space of this name."""
    require_known(name, SPACES, what="search space", key="name")


def load_space(
    name: str, *, preset: str, input_shape: tuple[int, int, int], n_classes: int
) -> Space:
    """Make a search space.

    Args:
        name: a key of ``SPACES``.
        preset: a size of that space, such as ``"paper"`` or ``"tiny"``.
        input_shape: (channels, height, width) of one image.
        n_classes: width of the classifier.

    Raises:
        UsageError: unknown name or preset; the message lists what exists.
    """
    require_space(name)
    make = load_factory(SPACES[name])
    return cast("Space", make(preset=preset, input_shape=input_shape, n_classes=n_classes))
