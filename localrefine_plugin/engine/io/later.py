"""Files that are written while the next thing is computed."""
from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, List

MOST_WAITING = 3  # pieces of work, with the maps they hold


class Later:
    """A thread of its own that does one thing after the other: ``later(write_map, path, volume, pixel_size)``.

    At the end of the ``with`` block all is done. What went wrong is raised there, or by the next call.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="write")
        self.waiting: List["Future[Any]"] = []

    def __enter__(self) -> "Later":
        return self

    def __call__(self, do: Callable[..., Any], *arguments: Any) -> None:
        while len(self.waiting) >= MOST_WAITING or self.waiting and self.waiting[0].done():
            self.waiting.pop(0).result()
        self.waiting.append(self.thread.submit(do, *arguments))

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None:  # something else has failed: what was begun is finished, the rest nobody needs
            for work in self.waiting:
                work.cancel()
        self.thread.shutdown()
        for work in self.waiting if kind is None else ():
            work.result()
