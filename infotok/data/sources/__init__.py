"""One module per data source. Each offers

Options     its `data` section of a params file, a class derived from `infotok.data.options.DataOptions`
METADATA    what the manifest says beside counts: ground truth that the source knows
prepare(options, rejects, found) -> Iterator[(split name, Split)]
            parts of splits in any order; `options.path`, of those that read files, is the file or folder, and `found`
            takes what the manifest shall say of these data
"""
