"""Sharing work among processes; torch is never imported."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import cv2

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def results(
    function: Callable[[_Job], _Result],
    jobs: Sequence[_Job],
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[_Result]:
    """Call a function of a module for each job, and give what it returns in the order of the jobs.

    Args:
        function: What is called, in this process or in fresh ones.
        jobs: What it is called with.
        workers: Processes that share the jobs; 1 is this one.
        progress: Told how many of how many jobs are done.

    Raises:
        Exception: What the function raised first; jobs that have not begun are left.
    """
    if workers == 1 or len(jobs) < 2:
        for done, job in enumerate(jobs, start=1):
            result = function(job)
            progress(done, len(jobs))
            yield result
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), multiprocessing.get_context("spawn"), _start) as pool:
        try:
            for done, result in enumerate(pool.map(function, jobs), start=1):
                progress(done, len(jobs))
                yield result
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others
    cv2.setNumThreads(1)
