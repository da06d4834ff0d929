"""Which GPU of this machine a cell runs on: CUDA_VISIBLE_DEVICES of its processes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from infotok.errors import InfotokError

VARIABLE = "CUDA_VISIBLE_DEVICES"
WHOLE = 1e-9  # what rounding may take of a device


def check_share(share: float | None) -> None:
    """
    Raises:
        InfotokError: no cell can have this many GPUs.
    """
    if share is not None and not (0 < share <= 1 or share == int(share) > 0):
        raise InfotokError(
            f"--gpus-per-cell: {share:g} is no share of GPUs; give a part of one, such as 0.25, or a whole number"
        )


def visible() -> list[str]:
    """The GPUs that processes started here would see, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get(VARIABLE)
    if named is None:
        import torch

        return [str(index) for index in range(torch.cuda.device_count())]
    devices = [name.strip() for name in named.split(",")]
    ends = [index for index, name in enumerate(devices) if name in ("", "-1")]  # CUDA reads up to the first such name
    return devices[: ends[0]] if ends else devices


@dataclass
class Devices:
    """GPUs, and how much of each is taken. share: of a GPU, or number of GPUs, that a job takes; None: jobs are spread
    evenly, as many as there are."""

    names: list[str]
    share: float | None = None
    _taken: dict[str, float] = field(default_factory=dict)

    @classmethod
    def here(cls, share: float | None) -> Devices:
        """Those of this machine; none where the environment says itself which device its processes use.

        Raises:
            InfotokError: GPUs are asked for, and there are none or the environment says otherwise.
        """
        check_share(share)
        chosen = os.environ.get("INFOTOK_DEVICE", "")
        if share is None:
            several = os.environ.get("INFOTOK_PROCESSES") or "1"  # which take a GPU each
            return cls([] if chosen not in ("", "cuda") or several != "1" else visible())
        if chosen not in ("", "cuda"):
            raise InfotokError(f"--gpus-per-cell: INFOTOK_DEVICE={chosen} already says where cells run; unset it")
        names = visible()
        if len(names) < share:
            raise InfotokError(
                f"--gpus-per-cell: a cell is to have {share:g} GPUs, and {len(names)} are visible here; leave the "
                f"option out to run on what there is, or set {VARIABLE}"
            )
        return cls(names, share)

    def take(self) -> list[str] | None:
        """The devices of one more job, the freest ones; None while there is no room. Empty where there are none."""
        if not self.names:
            return []
        freest = sorted(self.names, key=lambda name: self._taken.get(name, 0.0))
        if self.share is None:
            chosen, part = freest[:1], 1.0
        elif self.share > 1:
            chosen, part = freest[: int(self.share)], 1.0
        else:
            chosen, part = freest[:1], self.share
        if self.share is not None and any(self._taken.get(name, 0.0) + part > 1 + WHOLE for name in chosen):
            return None
        for name in chosen:
            self._taken[name] = self._taken.get(name, 0.0) + part
        return chosen

    def give_back(self, chosen: list[str]) -> None:
        """What `take` gave to a job that has ended."""
        part = self.share if self.share is not None and self.share < 1 else 1.0
        for name in chosen:
            self._taken[name] -= part
