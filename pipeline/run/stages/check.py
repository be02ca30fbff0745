"""Stage ``check``: the exported folders as their users get them, with plain onnxruntime."""

from __future__ import annotations

from dataclasses import asdict

from latency_tables.files import write_json
from pipeline.export.check import check_export
from pipeline.export.manifest import MANIFEST_NAME, load_manifest
from pipeline.run.context import RunContext
from pipeline.run.stage import Stage
from pipeline.run.stages.export import arrays
from pipeline.run.targets import run_targets, winner_of
from pipeline.search.targets import Target


def run_check(context: RunContext) -> None:
    """Check hashes, loading, golden outputs and test accuracy; write ``check.json``, per target.

    Raises:
        ExportError: a file is missing, damaged or replaced.
        ParityError: the file computes something else than torch did.
    """
    targets = _exported(context)
    for target in targets:
        path = context.folder.file(target.file("check.json"))
        manifest = load_manifest(path.parent / MANIFEST_NAME)
        dataset = context.dataset_of(manifest.architecture())
        with context.reporter.busy("running the exported file"):
            report = check_export(path.parent, arrays(context.eval_batches("test", dataset)))
        write_json(path, asdict(report))
        if len(targets) > 1:
            context.reporter.say(f"  network for {target}:")
        for line in report.lines():
            context.reporter.say(f"  {line}")


def _exported(context: RunContext) -> list[Target]:
    return [t for t in run_targets(context) if winner_of(context.folder, t) is not None]


CHECK = Stage(
    name="check",
    title="checking the exported file",
    run=run_check,
    settings=lambda context: {},
    needs=("export",),
    outputs=(),
    further_outputs=lambda context: [t.file("check.json") for t in _exported(context)],
)
