"""Stage ``data``: read the images, cut the splits, write ``data.json``."""

from __future__ import annotations

from latency_tables.files import write_json
from pipeline.run.context import RunContext
from pipeline.run.stage import Stage


def run_data(context: RunContext) -> None:
    """Load and check the data set; every split is asserted to be disjoint and balanced."""
    with context.reporter.busy("reading images"):
        dataset, splits = context.dataset, context.splits
    described = {**dataset.describe(), **splits.describe()}
    if dataset.test_split == "seeded":  # nobody else could know which images these are
        described["test_indices"] = splits.test().tolist()
    write_json(context.folder.file("data.json"), described)
    sizes = ", ".join(f"{name} {size}" for name, size in splits.sizes.items())
    context.reporter.say(
        f"  {dataset.n_images} images {'×'.join(map(str, dataset.input_shape))}, "
        f"{dataset.n_classes} classes: {sizes}"
    )


def _settings(context: RunContext) -> dict[str, object]:
    """The content of the data set counts as a setting: other images, other run."""
    data = context.config.data.model_dump(
        mode="json",
        exclude={
            "augment",
            "workers",
            "memory_limit_mb",
            "path",
            "test_path",
            "shuffle_shards",
        },
    )
    return {
        "data": data,
        "seed": context.config.seed,
        "content": context.dataset.content_sha256,
    }


DATA = Stage(
    name="data",
    title="reading and splitting the images",
    run=run_data,
    settings=_settings,
    needs=(),
    outputs=("data.json",),
)
