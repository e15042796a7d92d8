"""Writing a file so that a reader, or a run that was killed, never leaves half of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Give a hidden path in the same folder to write to, and rename it to `path` when the block ends well.

    Parents are created. If the block raises, what was written is removed and a file of an earlier run stays.

    Args:
        path: Where the file is to be; its suffix is kept, for encoders choose the format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
