from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.base import Split
from datamodules.image_transforms import ImageTransform, OfficialTransform, Pixels, random_window
from datamodules.labelled_images import ImageDataModule, ImageSet, found_in, listed_files
from lightning_vos.errors import DatasetNotFoundError, FrameError, MaskError
from lightning_vos.evaluation.semantic import ClassSet

_S2, _S1 = 13, 2  # bands of Sentinel-2 and Sentinel-1
_PARTS: dict[Split, str] = {"train": "ROIs0000_test", "val": "ROIs0000_validation", "test": "ROIs0000_validation"}
_VOID = 255
_SOURCES = (1, 2, 4, 5, 6, 7, 9, 10)  # of the classes, in order; 3 (savanna), 8 (snow and ice) and 0 are not scored
_TRANSFORM = ImageTransform(
    crop=224, scale=(1.0, 1.0), flip=0.5, vertical_flip=0.5, jitter=0.0, mean=(0.0,), std=(1.0,)
)


class DFC2020(ImageDataModule):
    """DFC2020 land cover: tiles of Sentinel-2 (13 bands), with Sentinel-1 (2 more) if asked for; 8 classes.

    Training takes a random window of a tile; a class is a label if it covers at least `min_share` of the window, so
    there may be none. Tiles are segmented whole, where the official code takes a random window then too. As the
    official code does, it trains on what the contest calls test, and validates on its validation.

    Sentinel-2 is cut to 0 to 10,000 and divided by that; Sentinel-1 to -25 to 0 dB, plus 25, divided by 25. The
    official code divides each band of a window by its largest value, and shifts and turns both sensors independently
    (`preprocessing`); the labels are those of the window in either case.

    The GeoTIFFs of more than one band cannot be read by the libraries that this project depends on. Tiles are read as
    `.npy` of the same name, (bands, H, W) as rasterio and tifffile give them; the error that says so has the two lines
    that convert them. Those of the classes, one band, are read as they are.

    Args:
        root: The folder of ROIs0000_test and ROIs0000_validation, or the folder that holds it as `DFC2020`.
        multimodal: Sentinel-1 behind Sentinel-2, 15 bands.
        window: Height and width of a training window in pixels; the official code has 224 of 256.
        min_share: What a class covers of a window at least, to be one of its labels.
        transform: Augmentation of a window and normalisation; its `crop` is `window`.
        **parts: What every dataset of images takes, see `ImageDataModule`.

    Raises:
        ValueError: `window` is no size, or `min_share` no share.
    """

    OFFICIAL: ClassVar = OfficialTransform(None, "band maximum", affine=1.0, sensors=(_S2,))

    def __init__(
        self,
        root: Path,
        multimodal: bool = False,
        window: int = 224,
        min_share: float = 0.1,
        transform: ImageTransform = _TRANSFORM,
        **parts: Any,
    ) -> None:
        super().__init__(root, transform=replace(transform, crop=max(window, 1)), **parts)
        if window < 1 or not 0 <= min_share <= 1:
            raise ValueError(f"DFC2020: window={window}, min_share={min_share}; expected at least 1, and 0 to 1")
        self.multimodal = multimodal
        self.window = window
        self.min_share = min_share

    @property
    def class_names(self) -> tuple[str, ...]:
        """The 8 classes."""
        return self.class_set.names

    @property
    def class_set(self) -> ClassSet:
        """0 to 7 are the classes; 255 is not scored: savanna, snow, nothing."""
        names = ("forest", "shrubland", "grassland", "wetland", "cropland", "urban", "barren", "water")
        return ClassSet("DFC2020 without savanna and snow", names, ignored=_VOID)

    def describe(self, split: Split) -> tuple[str, Path]:
        """For example "DFC2020 ROIs0000_test, 13 bands" and the folder of the dataset."""
        return f"DFC2020 {_PARTS[split]}, {_S2 + _S1 * self.multimodal} bands", self.folder

    @cached_property
    def folder(self) -> Path:
        """The folder of the parts."""
        for folder in (self.root, self.root / "DFC2020"):
            if any((folder / part).is_dir() for part in _PARTS.values()):
                return folder
        raise DatasetNotFoundError(
            f"DFC2020 is not at data.root={self.root}: no {_PARTS['train']} there or in its DFC2020\n"
            f"  found there: {found_in(self.root)}\n"
            "  expected: DFC2020/ROIs0000_test/s2_0/*_s2_*.npy and dfc_0/*_dfc_*.tif, s1_0/*_s1_*.npy for Sentinel-1\n"
            "            and the same in ROIs0000_validation\n"
            "Get it (IEEE Data Fusion Contest 2020) from https://ieee-dataport.org, name its folder: --data.root DIR,\n"
            "or write a small synthetic set in this layout, then run the same command again:\n"
            f"  lightning_vos data demo {self.root} --layout dfc2020"
        )

    def images(self, split: Split) -> ImageSet:
        """The tiles of a part, with their classes.

        Raises:
            DatasetNotFoundError: The part has no tiles, or one lacks its classes or Sentinel-1.
        """
        part = self.folder / _PARTS[split]
        optical = _rasters(part, "s2")
        if not optical:
            raise DatasetNotFoundError(
                f"No tiles of Sentinel-2 in {part}\n  found {found_in(part)}\n  expected s2_0/*_s2_*.npy in it."
            )
        names = sorted(optical)
        radar = (
            listed_files(names, _rasters(part, "s1"), part, part / "s2*", "tiles of Sentinel-1")
            if self.multimodal
            else None
        )
        masks = listed_files(names, _rasters(part, "dfc"), part, part / "s2*", "tiles of classes")
        paths = [optical[name] for name in names]
        return _Tiles(
            names, paths, self.class_set, 0, masks=masks, least=self.min_share, radar=radar, window=self.window
        )


@dataclass(frozen=True, kw_only=True)
class _Tiles(ImageSet):
    """Tiles: the bands of one sensor or two, and the classes.

    Attributes:
        radar: The files of Sentinel-1, if it is used.
        window: Height and width of a training window in pixels.
    """

    radar: Sequence[str] | None
    window: int

    def read(self, number: int) -> NDArray[np.float32]:
        """The (H, W, 13 or 15) bands in [0, 1].

        Raises:
            FrameError: A file cannot be read, or has other bands or another size.
        """
        optical = np.asarray(_bands(Path(self.paths[number]), _S2).clip(0, 10_000) / 10_000, np.float32)
        if self.radar is None:
            return optical
        radar = (_bands(Path(self.radar[number]), _S1).clip(-25, 0) + 25) / 25
        if radar.shape[:2] != optical.shape[:2]:
            raise FrameError(
                f"{self.radar[number]} has {radar.shape[1]}x{radar.shape[0]} pixels, but its tile of Sentinel-2 "
                f"{optical.shape[1]}x{optical.shape[0]} (width x height).\nCopy both again."
            )
        return np.concatenate([optical, radar], axis=-1, dtype=np.float32)

    def mask(self, number: int) -> NDArray[np.uint8]:
        """The (H, W) classes, 255 where there is none.

        Raises:
            MaskError: They cannot be read, or have a value of no class.
        """
        assert self.masks is not None
        path = Path(self.masks[number])
        source = _classes(path)
        values = np.full(256, _VOID, np.uint8)
        values[list(_SOURCES)] = np.arange(len(_SOURCES))
        return values[source]

    def draw(self, number: int, rng: np.random.Generator) -> tuple[Pixels, NDArray[np.uint8]]:
        """A random window of a tile, and the labels of what it shows.

        Raises:
            FrameError: The tile cannot be used, or is smaller than a window.
            MaskError: Its classes cannot be used, or have another size.
        """
        tile, mask = self.read(number), self.mask(number)
        if min(tile.shape[:2]) < self.window:
            raise FrameError(
                f"{self.paths[number]} has {tile.shape[1]}x{tile.shape[0]} pixels (width x height), less than a window "
                f"of {self.window}.\nTake smaller windows: --data.window."
            )
        if mask.shape != tile.shape[:2]:
            assert self.masks is not None
            raise MaskError(
                f"{self.masks[number]} has {mask.shape[1]}x{mask.shape[0]} pixels, its tile "
                f"{tile.shape[1]}x{tile.shape[0]} (width x height).\nCopy both again."
            )
        rows, columns = random_window(mask.shape, (self.window, self.window), rng)
        return tile[rows, columns], self.shown(mask[rows, columns])


def _rasters(part: Path, kind: str) -> Mapping[str, str]:
    """Tile, as that of Sentinel-2 is called -> its raster of a kind; `.npy` rather than `.tif`."""
    paths = [path for suffix in (".tif", ".npy") for path in sorted(part.glob(f"{kind}_*/*_{kind}_*{suffix}"))]
    return {path.stem.replace(f"_{kind}_", "_s2_"): os.fspath(path) for path in paths}


def _bands(path: Path, bands: int) -> NDArray[np.float32]:
    """(H, W, bands) of a `.npy` that holds (bands, H, W), or the other way round; 0 where there is no number."""
    if path.suffix != ".npy":
        raise FrameError(
            f"GeoTIFF of {bands} bands that cannot be read: {path}\n"
            "  neither OpenCV nor Pillow reads rasters of so many bands; expected a .npy of the same name beside it.\n"
            "Convert all of them once, after `pip install tifffile`:\n"
            "  import numpy, pathlib, tifffile\n"
            f'  for path in pathlib.Path("{path.parents[2]}").rglob("*_s[12]_*.tif"):\n'
            '      numpy.save(path.with_suffix(".npy"), tifffile.imread(path))'
        )
    try:
        raster = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FrameError(f"Raster that cannot be read: {path}\n  found {error}\nConvert it again.") from error
    if raster.ndim == 3 and raster.shape[0] == bands:
        raster = raster.transpose(1, 2, 0)
    if raster.ndim != 3 or raster.shape[2] != bands or raster.dtype.kind not in "iuf":
        raise FrameError(
            f"Raster of other bands than expected: {path}\n"
            f"  found {raster.dtype} of shape {raster.shape}, expected numbers of shape ({bands}, H, W).\n"
            "Convert it again from its GeoTIFF."
        )
    return np.ascontiguousarray(np.nan_to_num(raster.astype(np.float32)))


def _classes(path: Path) -> NDArray[np.uint8]:
    """(H, W) classes as the contest numbers them, 0 to 10."""
    try:
        found = (
            np.load(path, allow_pickle=False)
            if path.suffix == ".npy"
            else cv2.imread(os.fspath(path), cv2.IMREAD_UNCHANGED)
        )
    except (OSError, ValueError, EOFError, cv2.error) as error:
        raise MaskError(f"Classes that cannot be read: {path}\n  found {error}\nCopy or convert it again.") from error
    classes = None if found is None else np.squeeze(found)
    if (
        classes is None
        or classes.ndim != 2
        or classes.dtype.kind not in "iu"
        or classes.min() < 0
        or classes.max() > 10
    ):
        shape = "no raster" if classes is None else f"{classes.dtype} of shape {classes.shape}, up to {classes.max()}"
        raise MaskError(
            f"Classes that cannot be used: {path}\n"
            f"  found {shape}; expected one band of the classes 1 to 10, or 0 for none.\n"
            "Copy it again; as .npy, (H, W), where it is no GeoTIFF that OpenCV reads."
        )
    return classes.astype(np.uint8)
