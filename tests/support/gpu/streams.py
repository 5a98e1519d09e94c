"""What of the stand-in for CuPy has a state: counts, memory, streams, and which device a thread computes on.

A stream copies as late as it may, when somebody waits for it: a buffer overwritten too early, or an array read too
early, holds something else. Writing to an array that is in use is an error.
"""
from __future__ import annotations

import itertools
import threading
import types
import weakref
from typing import Any, Dict, List

import numpy as np


class Counts:
    """What has cost time so far."""

    def __init__(self) -> None:
        self.waits = self.waits_of_reader = self.bytes_to_device = self.bytes_to_host = self.launches = 0
        self.volumes_to_host = 0  # arrays of three dimensions
        self.calls = self.traffic = 0  # operations on arrays but for our kernels; bytes they read and write


class Ledger:
    """State that all arrays of one stand-in share."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.live: Dict[int, int] = {}  # bytes of each array there is
        self.held = self.peak = 0  # bytes of all of them, now and at most so far
        self.largest_double = 0  # bytes of the largest array of float64 or complex128
        self.limit = 1 << 40  # of the device's memory
        self.pinned: List[np.ndarray] = []
        self.targets: Dict[int, Any] = {}  # arrays that a stream has written to, and when they were last in use
        self.now = itertools.count(1)
        self.thread = threading.local()  # the current device is each thread's own

    @property
    def device(self) -> int:
        return getattr(self.thread, "device", 0)

    def allocate(self, array: np.ndarray) -> None:
        """Count an array, until nobody holds it any more."""
        if id(array) in self.live:
            return
        if self.held + array.nbytes > self.limit:
            raise OutOfMemoryError(f"Out of memory allocating {array.nbytes} bytes")
        self.live[id(array)] = array.nbytes
        self.counts.traffic += array.nbytes
        self.held += array.nbytes
        self.peak = max(self.peak, self.held)
        if array.dtype in (np.float64, np.complex128):
            self.largest_double = max(self.largest_double, array.nbytes)
        weakref.finalize(array, self.free, id(array))

    def moved(self, *arrays: np.ndarray) -> np.ndarray:
        """Count an operation that reads (or writes) these; returns the first."""
        self.counts.calls += 1
        self.counts.traffic += sum(array.nbytes for array in arrays)
        return arrays[0]

    def free(self, key: int) -> None:
        self.held -= self.live.pop(key)

    def used(self, array: np.ndarray) -> None:
        """Called whenever the computing thread does something with an array."""
        base = root(array)
        if id(base) in self.targets:
            self.targets[id(base)] = base, next(self.now)


def root(array: Any) -> Any:
    """The array that owns the memory."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class OutOfMemoryError(MemoryError):
    pass


OutOfMemoryError.__module__ = "cupy.cuda.memory"


class Pool:
    """cupy.cuda.MemoryPool of an empty GPU."""

    limit = 0

    def free_bytes(self) -> int:
        return 0

    def used_bytes(self) -> int:
        return 0

    def get_limit(self) -> int:
        return self.limit

    def set_limit(self, size: Any = None, fraction: Any = None) -> None:
        self.limit = size

    def free_all_blocks(self) -> None:
        pass


class Event:
    """cupy.cuda.Event."""

    def __init__(self, ledger: Ledger, disable_timing: bool):
        self.ledger, self.time, self.stream, self.count = ledger, 0, None, 0  # type: ignore[var-annotated]

    def record(self, stream: Any = None) -> None:
        """On a stream, or on that of the computing thread, which does everything at once."""
        self.time, self.stream = next(self.ledger.now), stream
        self.count = 0 if stream is None else stream.ordered

    def synchronize(self) -> None:
        if self.stream is not None:
            self.stream.copy(self.count)


class Stream:
    """A cupy.cuda.Stream as late as it may be: a copy is made when somebody waits for it."""

    def __init__(self, ledger: Ledger, non_blocking: bool):
        self.ledger, self.device, self.seen = ledger, ledger.device, 0
        self.ordered = self.done = 0
        self.pending: List[Any] = []

    def wait_event(self, event: Event) -> None:
        self.seen = max(self.seen, event.time)

    def synchronize(self) -> None:
        self.ledger.counts.waits_of_reader += 1
        self.copy(self.ordered)

    def order(self, target: np.ndarray, source: np.ndarray) -> None:
        """A copy from pinned memory to what nobody uses meanwhile."""
        base = root(target)
        if self.ledger.device != self.device:
            raise RuntimeError(f"stream of device {self.device} in a thread whose device is {self.ledger.device}")
        if not any(root(source) is pinned for pinned in self.ledger.pinned):
            raise RuntimeError("the memory is not pinned")
        if self.ledger.targets.get(id(base), (base, 0))[1] > self.seen:
            raise RuntimeError("race: the array is in use on another stream")
        self.ledger.targets.setdefault(id(base), (base, 0))
        self.ledger.counts.bytes_to_device += source.nbytes
        self.ordered += 1
        self.pending.append((target, source))

    def copy(self, count: int) -> None:
        """Everything up to the copy of this number."""
        while self.done < count:
            target, source = self.pending.pop(0)
            target[...] = source
            self.done += 1


class DeviceOf:
    """cupy.cuda.Device: of the thread, until another one is current."""

    def __init__(self, ledger: Ledger, index: int):
        self.ledger, self.id = ledger, index

    def use(self) -> None:
        self.ledger.thread.device = self.id

    def __enter__(self) -> None:
        self.before = self.ledger.device
        self.use()

    def __exit__(self, *_: Any) -> None:
        self.ledger.thread.device = self.before


CLASSES_USED = {"cuda.MemoryPool": Pool, "cuda.Stream": Stream, "cuda.Device": DeviceOf}
NOT_CUPYS = {"order", "copy"}


def cuda_namespace(ledger: Ledger) -> Any:
    def wait() -> None:
        ledger.counts.waits += 1

    def alloc_pinned_memory(size: int) -> np.ndarray:
        ledger.pinned.append(np.full(size, 77, np.uint8))
        return ledger.pinned[-1]

    runtime = types.SimpleNamespace(memGetInfo=lambda: (4 << 30, 8 << 30), runtimeGetVersion=lambda: 12090)
    return types.SimpleNamespace(
        runtime=runtime, memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        Device=lambda index: DeviceOf(ledger, index), alloc_pinned_memory=alloc_pinned_memory,
        Stream=lambda non_blocking: Stream(ledger, non_blocking),
        Event=lambda disable_timing: Event(ledger, disable_timing),
        get_current_stream=lambda: types.SimpleNamespace(synchronize=wait))
