"""Errors a person can cause and mend: the command line prints their text without a traceback and ends with status 2.

A message says what is wrong, where, what was found, what was expected and what to do, in at most eight lines.
"""


class UserError(Exception):
    """Base of every error that the user, rather than the code, can mend."""


class DatasetNotFoundError(UserError):
    """A dataset, a split or a file that a split names is not where it was looked for."""


class FrameError(UserError):
    """A frame cannot be read, or has another size than the video it belongs to."""


class MaskError(UserError):
    """A mask is not an indexed PNG of the frame's size with at least one object."""


class CheckpointError(UserError):
    """A checkpoint is missing, cut off, or belongs to another model."""


class ConfigError(UserError):
    """Settings that cannot work together, or not with the data at hand."""


class DeviceMemoryError(UserError):
    """The memory of the device does not hold what was asked for."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device could not give the memory that was asked of it."""
    # torch tells it by a class on a GPU, and by its words alone on a CPU
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
