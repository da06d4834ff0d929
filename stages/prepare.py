"""Stage `prepare`: bring the data set into its prepared form."""

from stages.common import Stage, shared_stage, single


@shared_stage
def prepare(run: Stage) -> None:
    """Make or read the data: images, captions and questions as Arrow, a manifest, rejects, and the text tokenizer."""
    from infotok.data.prepare import prepare as make

    config = run.params.data
    manifest = make(config, run.folder, run.layout.root)
    kept, duplicates = manifest["rejects"], manifest.get("duplicates", {})
    if kept["count"]:
        run.warn(f"{kept['count']} rejects are listed in {run.folder / 'rejects.jsonl'}")
    if across := duplicates.get("across"):
        run.warn(f"{across} images are copies of one in another split")
    metrics = {f"data/{name}": float(about["images"]) for name, about in manifest["splits"].items()}
    run.finish(metrics | {"data/rejects": float(kept["count"])}, {"source": config.source, "seed": config.seed})


if __name__ == "__main__":
    single(prepare)
