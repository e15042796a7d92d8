"""Five video segmentation papers side by side in one PyTorch Lightning framework.

Names are imported when they are first used, so that scoring and `--help` never pay for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_vos.models.hodor.module import HODOR
    from lightning_vos.models.mavos.module import MAVOS
    from lightning_vos.models.qmvos.module import QMVOS
    from lightning_vos.models.taformer.module import TAFormer
    from lightning_vos.models.token_masking.module import TokenMasking
    from lightning_vos.models.token_masking.segmentation import SegmentationFromMasks
    from lightning_vos.pretrained import load_pretrained
    from lightning_vos.published import load_published
    from lightning_vos.vos.track import Tracker, track

__version__ = "0.1.0"
__all__ = [
    "HODOR",
    "MAVOS",
    "QMVOS",
    "SegmentationFromMasks",
    "TAFormer",
    "TokenMasking",
    "Tracker",
    "load_pretrained",
    "load_published",
    "track",
]

_HOME = {
    "HODOR": "lightning_vos.models.hodor.module",
    "MAVOS": "lightning_vos.models.mavos.module",
    "QMVOS": "lightning_vos.models.qmvos.module",
    "SegmentationFromMasks": "lightning_vos.models.token_masking.segmentation",
    "TAFormer": "lightning_vos.models.taformer.module",
    "TokenMasking": "lightning_vos.models.token_masking.module",
    "Tracker": "lightning_vos.vos.track",
    "load_pretrained": "lightning_vos.pretrained",
    "load_published": "lightning_vos.published",
    "track": "lightning_vos.vos.track",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
