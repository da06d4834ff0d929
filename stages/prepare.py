"""Stage `prepare`: bring the data set into its prepared form."""

from infotok.data.options import DataOptions
from infotok.data.prepare import prepare as prepare_data
from pipeline.running.stage import Stage
from stages.common import main


def prepare(run: Stage) -> None:
    """Make or read the data: images, captions and questions as Arrow, a manifest, rejects, and the text tokenizer."""
    options = run.config(DataOptions)
    manifest = prepare_data(options, run.folder)
    rejects, duplicates = manifest["rejects"], manifest.get("duplicates", {})
    for why, count in manifest.get("skipped", {}).items():
        run.warn(f"{count} entries are left out, having {why}")
    if rejects["count"]:
        run.warn(f"{rejects['count']} rejects are listed in {run.folder / 'rejects.jsonl'}")
    if across := duplicates.get("across"):
        run.warn(f"{across} images are copies of one in another split")
    metrics = {f"data/{name}": float(about["images"]) for name, about in manifest["splits"].items()}
    protocol = {"source": options.source, "seed": options.seed}
    if named := manifest.get("given_splits"):
        protocol["splits"] = ", ".join(f"{given} became {split}" for given, split in named.items())
    run.finish(metrics | {"data/rejects": float(rejects["count"])}, protocol)


if __name__ == "__main__":
    main("prepare")
