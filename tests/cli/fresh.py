"""What fresh processes run in the tests of `in_fresh_process`; imports nothing that is slow."""

import os
import signal
import time

from lightning_vos.errors import ConfigError


def processes(count):
    for _ in range(count):
        yield os.getpid()


def fail(how):
    yield 0
    if how == "refused":
        raise ConfigError("no such thing")
    if how == "memory":
        raise MemoryError
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ZeroDivisionError


def endless():
    yield os.getpid()
    time.sleep(600)
