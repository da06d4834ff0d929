"""One module per data source. Each offers

Options     its `data` section of a params file, a class derived from `infotok.data.options.DataOptions`
METADATA    what the manifest says beside counts: ground truth that the source knows
prepare(options, place, rejects, found) -> Iterator[(split name, Split)]
            parts of splits in any order; `place` is `paths.input`, the file or folder that it reads
"""
