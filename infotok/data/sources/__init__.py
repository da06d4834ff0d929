"""One module per data source. Each offers `prepare(config) -> Iterator[(split name, Split)]` and `METADATA`."""
