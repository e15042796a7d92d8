"""Measuring in a process of its own, so that its memory is that of one network alone."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from lightning_vos.errors import DeviceMemoryError, UserError, is_out_of_memory

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


class StoppedError(Exception):
    """The process could not go on; the text says why."""


def in_fresh_process(function: Callable[..., Iterator[Any]], *arguments: Any) -> Generator[Any]:
    """What a generator function of a module yields when a fresh process runs it, item by item.

    Raises:
        UserError: what the function raised.
        StoppedError: the process ran out of memory or was killed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        while True:
            try:
                item = receiver.recv()
            except EOFError:
                break
            if isinstance(item, Exception):
                raise item
            yield item
        process.join()
        if process.exitcode and process.exitcode < 0:
            raise StoppedError(f"killed by {signal.Signals(-process.exitcode).name}")
        if process.exitcode:
            raise RuntimeError("the measuring process failed; its traceback is above")
    finally:
        process.terminate()
        process.join()


def _send(sender: Connection, function: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends this process
    try:
        for item in function(*arguments):
            sender.send(item)
    except DeviceMemoryError:
        sender.send(StoppedError("out of memory"))
    except UserError as error:
        sender.send(error)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not is_out_of_memory(error):
            raise
        sender.send(StoppedError("out of memory"))
    finally:
        sender.close()
