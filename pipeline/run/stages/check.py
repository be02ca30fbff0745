"""Stage ``check``: the exported folder as its user gets it, with plain onnxruntime."""

from __future__ import annotations

from dataclasses import asdict

from latency_tables.files import write_json
from pipeline.export.check import check_export
from pipeline.export.manifest import MANIFEST_NAME, load_manifest
from pipeline.run.context import RunContext
from pipeline.run.stage import Stage
from pipeline.run.stages.export import arrays


def run_check(context: RunContext) -> None:
    """Check hashes, loading, golden outputs and test accuracy; write ``check.json``.

    Raises:
        ExportError: a file is missing, damaged or replaced.
        ParityError: the file computes something else than torch did.
    """
    manifest = load_manifest(context.folder.file(MANIFEST_NAME))
    dataset = context.dataset_of(manifest.architecture())
    with context.reporter.busy("running the exported file"):
        report = check_export(context.folder.path, arrays(context.eval_batches("test", dataset)))
    write_json(context.folder.file("check.json"), asdict(report))
    for line in report.lines():
        context.reporter.say(f"  {line}")


CHECK = Stage(
    name="check",
    title="checking the exported file",
    run=run_check,
    settings=lambda context: {},
    needs=("export",),
    outputs=("check.json",),
)
