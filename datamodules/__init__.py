"""One LightningDataModule a dataset; `datamodules.DAVIS` is what a YAML names.

Names are imported when they are first used, so that rendering a synthetic set never pays for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.ade20k import ADE20K
    from datamodules.coco_pseudo_video import COCOInstanceVideo, COCOPseudoVideo
    from datamodules.coco_semantic import COCOSemantic
    from datamodules.davis import DAVIS
    from datamodules.dfc2020 import DFC2020
    from datamodules.endotect import EndoTect
    from datamodules.labelled_image_folder import LabelledImageFolder
    from datamodules.long_time_video import LongTimeVideo
    from datamodules.lvos import LVOS
    from datamodules.mixture import Mixture
    from datamodules.random_scenes import RandomScenes
    from datamodules.static_images import StaticImages
    from datamodules.synthetic import Synthetic, SyntheticVIS
    from datamodules.synthetic_labelled import SyntheticImages
    from datamodules.video_folder import VideoFolder
    from datamodules.voc import VOC
    from datamodules.youtube_vis import YouTubeVIS
    from datamodules.youtube_vos import YouTubeVOS

__all__ = [
    "ADE20K",
    "DAVIS",
    "DFC2020",
    "LVOS",
    "VOC",
    "COCOInstanceVideo",
    "COCOPseudoVideo",
    "COCOSemantic",
    "EndoTect",
    "LabelledImageFolder",
    "LongTimeVideo",
    "Mixture",
    "RandomScenes",
    "StaticImages",
    "Synthetic",
    "SyntheticImages",
    "SyntheticVIS",
    "VideoFolder",
    "YouTubeVIS",
    "YouTubeVOS",
]

_HOME = {
    "ADE20K": "datamodules.ade20k",
    "COCOInstanceVideo": "datamodules.coco_pseudo_video",
    "COCOPseudoVideo": "datamodules.coco_pseudo_video",
    "COCOSemantic": "datamodules.coco_semantic",
    "DAVIS": "datamodules.davis",
    "DFC2020": "datamodules.dfc2020",
    "EndoTect": "datamodules.endotect",
    "LVOS": "datamodules.lvos",
    "LabelledImageFolder": "datamodules.labelled_image_folder",
    "LongTimeVideo": "datamodules.long_time_video",
    "Mixture": "datamodules.mixture",
    "RandomScenes": "datamodules.random_scenes",
    "StaticImages": "datamodules.static_images",
    "Synthetic": "datamodules.synthetic",
    "SyntheticImages": "datamodules.synthetic_labelled",
    "SyntheticVIS": "datamodules.synthetic",
    "VOC": "datamodules.voc",
    "VideoFolder": "datamodules.video_folder",
    "YouTubeVIS": "datamodules.youtube_vis",
    "YouTubeVOS": "datamodules.youtube_vos",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
