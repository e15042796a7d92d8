"""`lightning_vos data`: data sets to begin with. Never imports torch."""

import shlex
from pathlib import Path

from jsonargparse import auto_cli
from rich.console import Console

from datamodules.synthetic_files import StillSettings, SyntheticSettings, write_davis, write_stills
from lightning_vos.errors import ConfigError


class Data:
    """Data sets to begin with."""

    def demo(self, directory: Path, layout: str = "davis", seed: int = 0) -> None:
        """Write a synthetic data set in the layout of a real one, to try a recipe without any download.

        Args:
            directory: The folder that will hold the data set, as a real one would be kept there.
            layout: The data set whose layout it takes: davis, or static for still images to pre-train on.
            seed: Another seed gives other content.
        """
        if layout == "davis":
            root, recipe = directory / "DAVIS", "mavos_r50"
            videos = SyntheticSettings(seed=seed)
            write_davis(root, videos)
            content = f"{videos.train} training and {videos.val} validation videos of {videos.frames} frames"
            height, width = videos.height, videos.width
        elif layout == "static":
            root, recipe = directory / "static", "mavos_r50_static"
            images = StillSettings(seed=seed)
            write_stills(root, images)
            content, height, width = f"{images.images} images with masks", images.height, images.width
        else:
            raise ConfigError(f"No synthetic data set has the layout {layout!r}.\nExpected --layout davis or static.")
        place = "" if directory == Path("data") else f" --data.root {shlex.quote(str(directory))}"
        Console().print(
            f"{root} holds {content}, {height} x {width} pixels. They are synthetic.\nTo train on them:\n"
            f"  lightning_vos fit --config configs/{recipe}.yaml{place}",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )


def main(args: list[str]) -> None:
    """Run `lightning_vos data` with the words that follow it.

    Raises:
        UserError: The words ask for something that cannot be done.
    """
    auto_cli(Data, args=args, prog="lightning_vos data")
