"""From a name on the hub or a folder to an adapted model, whose codes are those of its own encoding."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from infotok.errors import InfotokError, SettingError
from infotok.mllm.adapter import Adapter, one_line
from infotok.mllm.codes import CodeAdapter
from infotok.mllm.options import FOLDERS, ModelConfig

MODEL_FILE = "model.json"  # that says which weights a result is of


def adapter_names() -> list[str]:
    """Types of models that there is an adapter for."""
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "adapters")]))


def adapter_of(name: str) -> type[Adapter]:
    """The adapter for the model of a name on the hub or of a folder, by its configuration.

    Raises:
        SettingError: there is no such model, or no adapter for it.
    """
    if name.startswith(FOLDERS) and not Path(name).is_dir():
        raise SettingError(
            "name",
            f"{name}: there is no such folder; give one that save_pretrained has written, or a name on the hub",
        )
    try:
        kind = _kind(name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _cannot_load(name, error) from None
    if kind not in adapter_names():
        known = ", ".join(adapter_names())
        raise SettingError(
            "name",
            f"{name} is of the type '{kind}', for which there is no adapter; choose a model of {known}, or "
            f"add infotok/mllm/adapters/{kind}.py",
        )
    return importlib.import_module(f"infotok.mllm.adapters.{kind}").Adapted


def load(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    decoder: str | Path | None = None,
    control: bool = False,
    trust: bool = False,
) -> Adapter:
    """The model, in evaluation mode and without dropout.

    Args:
        name: on the Hugging Face hub, or a folder of `save_pretrained`.
        decoder: file of a decoder that the model lacks.
        control: take a model that draws with other tokens than it reads with.
        trust: run code that comes with the model.

    Raises:
        SettingError: there is no such model, no adapter for it, its tokens are not shared, it comes with code that is
            not trusted, or the decoder is none.
    """
    from huggingface_hub.errors import StrictDataclassError

    without_bars()
    adapted = adapter_of(name)
    if not (adapted.shared or control):
        raise SettingError(
            "control",
            f"{name} reads images by another encoder than it draws with: it has no shared tokens "
            "to regularize; choose a model that has, or take it as the control (control: true)",
        )
    try:
        adapter = adapted.open(name, _folder_of(name), dtype, None if decoder is None else str(decoder), trust)
    except SettingError:
        raise
    except InfotokError as error:
        raise SettingError("name", str(error)) from None
    except SafetensorError as error:
        raise SettingError(
            "name", f"{name}: its weights are damaged ({one_line(error)}); copy or download them again"
        ) from None
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, StrictDataclassError) as error:
        raise _cannot_load(name, error) from None
    without_dropout(adapter.model.eval())
    return adapter


def open_model(config: ModelConfig, tokens: int, device: torch.device) -> Adapter:
    """The model of a section, on a device, whose images have at most so many tokens.

    Raises:
        SettingError: as of `load`, of the section's keys; `control` or `trust` does not suit the model; or, of the key
            `tokens`, it has no such images.
    """
    name = config.name
    if config.revision is not None and config.folder is None:
        name = _snapshot(name, config.revision)
    adapted = adapter_of(name)
    if config.control and adapted.shared:
        raise SettingError("control", f"{config.name} draws with the tokens that it reads: no control; leave it out")
    if config.trust and not adapted.brings_code:
        raise SettingError("trust", f"{config.name} is of a class of transformers: no code comes with it; leave it out")
    adapter = load(name, decoder=config.decoder, control=config.control, trust=config.trust)
    try:
        adapter.limit(tokens)
    except InfotokError as error:
        raise SettingError("tokens", str(error)) from None
    adapter.to(device)
    return adapter


def check_finite(adapter: Adapter) -> None:
    """Raises SettingError, of the key `name`, where weights are not finite."""
    for name, weights in adapter.model.named_parameters():
        if not weights.isfinite().all():
            raise SettingError(
                "name", f"its weights are not finite, such as {name}; copy or download all of its files again"
            )


def check_codes(adapter: CodeAdapter, pixels: Tensor) -> str | None:
    """Compare our codes of pixels (B, 3, H, W) with the model's own; returns a sentence where they are not the same.

    Raises:
        InfotokError: too many differ, as they do where a version of transformers encodes otherwise.
    """
    adapter.model.eval()
    with torch.no_grad():
        ours, own = adapter.codes(pixels), adapter.own_codes(pixels)
    share = float((ours == own).float().mean()) if ours.shape == own.shape else 0.0
    said = f"{share:.2%} of the adapter's codes are those that the model's own encoding gives"
    if share < adapter.least_agreement:
        raise InfotokError(f"{said}; use the version of transformers that requirements.lock names")
    return None if share == 1.0 else said


def without_bars() -> None:
    """No progress bars of transformers where there is no terminal: they would bury what a log has to say."""
    if not sys.stderr.isatty():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


def without_dropout(model: nn.Module) -> None:
    """Set every dropout to 0, and leave the configuration that is saved as it is. Dropout draws from the global random
    stream: a resumed run would not repeat an undisturbed one, nor a twin see the noise of its baseline."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _kind(name: str) -> str:
    """What its configuration calls `model_type`, read without running code that comes with it."""
    from transformers import PretrainedConfig

    described, _ = PretrainedConfig.get_config_dict(name)
    if "model_type" not in described:
        raise ValueError("no config.json that names a model_type")
    return described["model_type"]


def _snapshot(name: str, revision: str) -> str:
    """The folder with the hub's model as it was at a commit or tag."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return snapshot_download(name, revision=revision)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise SettingError(
            "revision",
            f"{revision} of {name} cannot be loaded ({one_line(error)}); check the commit or tag, and the network",
        ) from None


def _folder_of(name: str) -> Path:
    """Where the files lie."""
    if Path(name).is_dir():
        return Path(name)
    from transformers.utils import cached_file

    return Path(cached_file(name, "config.json") or name).parent


def _cannot_load(name: str, error: Any) -> SettingError:
    said = one_line(error).split(" If you were trying")[0]
    if "gated" in str(error).lower():
        return SettingError("name", f"{name} is gated; ask for access on its page and run `hf auth login`")
    return SettingError(
        "name",
        f"{name} cannot be loaded ({said}); give a name on the Hugging Face hub or a folder that "
        "save_pretrained has written",
    )
