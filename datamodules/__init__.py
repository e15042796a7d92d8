"""One LightningDataModule a dataset; `datamodules.DAVIS` is what a YAML names.

Names are imported when they are first used, so that rendering a synthetic set never pays for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.davis import DAVIS
    from datamodules.static_images import StaticImages
    from datamodules.synthetic import Synthetic
    from datamodules.video_folder import VideoFolder

__all__ = ["DAVIS", "StaticImages", "Synthetic", "VideoFolder"]

_HOME = {
    "DAVIS": "datamodules.davis",
    "StaticImages": "datamodules.static_images",
    "Synthetic": "datamodules.synthetic",
    "VideoFolder": "datamodules.video_folder",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
