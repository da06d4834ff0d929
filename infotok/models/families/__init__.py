"""One module per family. Each defines `Family`, a subclass of `infotok.models.family.Family`."""
