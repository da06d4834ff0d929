"""Models whose folder comes with code of its own, which is run by whoever trusts it; none of it is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infotok.errors import SettingError


def trusted_folder(name: str, decoder: str | None, trust: bool) -> Path:
    """Where all files of a model lie, those of the hub after they have been downloaded.

    Raises:
        SettingError: nobody has said that its code is trusted, or a decoder is given that it does not lack.
    """
    if decoder is not None:
        raise SettingError("decoder", f"{decoder}: {name} has a decoder of its own; leave it out")
    if not trust:
        raise SettingError(
            "trust",
            f"{name} comes with code of its own, which loading it runs; read it, and set trust: true if you trust it",
        )
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name))


class Texts:
    """What stands for a processor where a folder has a tokenizer of texts alone."""

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

    def save_pretrained(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
