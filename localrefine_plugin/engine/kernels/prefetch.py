"""Images read, and sent to a GPU, while the device computes on those before them."""
from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Callable, List, Optional, Tuple

import numpy as np

from .device import Device

Array = Any
PINNED_BYTES = 32 << 20  # of each of the two buffers; long enough a copy to hide its start, short beside a batch


Read = Callable[..., np.ndarray]
"""Images (b, N, N) float32 of an index (b,); with a second argument (b, N, N), in that array."""


def from_array(images: np.ndarray) -> Read:
    """Reads images that are in memory."""
    def read(index: np.ndarray, out: Optional[np.ndarray] = None) -> np.ndarray:
        return np.take(images, index, axis=0, out=out)
    return read


class Prefetch:
    """``read`` one batch ahead, in a thread of its own.

    Called as ``read`` is. For index a … b it hands out the images and begins to read as many of those that follow.
    Whoever asks for other images gets them as well, only later. On a GPU the images are the GPU's, and their memory is
    written to again during the call after the next: a batch must have been asked of the GPU before that.

    Parameters
    ----------
    read : as `from_array` gives one; only ever called by one thread at a time.
    end : of the images that are wanted next.  box_size : N.
    """

    def __init__(self, read: Read, end: int, box_size: int, device: Device):
        self.read, self.end = read, end
        self.transfer = Transfer(read, box_size, device) if device.on_gpu else None
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read")
        self.index = np.zeros(0, int)
        self.images: Optional["Future[Array]"] = None

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: Any) -> None:
        self.forget()
        self.thread.shutdown()

    def __call__(self, index: np.ndarray) -> Array:
        if self.images is None or not np.array_equal(index, self.index):
            self.forget()
            self.begin(index)
        assert self.images is not None
        images = self.images.result()
        self.images = None
        following = np.arange(index[-1] + 1, min(index[-1] + 1 + len(index), self.end))
        if len(following):
            self.begin(following)
        return images

    def begin(self, index: np.ndarray) -> None:
        work = partial(self.read, index) if self.transfer is None else self.transfer.order(index)
        self.index, self.images = index, self.thread.submit(work)

    def forget(self) -> None:
        """Wait for what nobody wants any more, and give back its memory."""
        if self.images is not None:
            self.images.exception()
        self.images = None
        if self.transfer is not None:
            self.transfer.targets = []


class Transfer:
    """From a file to a GPU: piece by piece through two pinned buffers and a stream of its own.

    The arrays on the GPU, two that take turns, are allocated by the thread that computes, so that CuPy's pool gives
    their memory to nobody else; an event tells the stream when the GPU has done with what they held.
    """

    def __init__(self, read: Read, box_size: int, device: Device):
        self.read, self.device, self.shape = read, device, (box_size, box_size)
        self.piece = max(1, PINNED_BYTES // (4 * box_size ** 2))
        self.targets: List[Array] = []
        self.pinned: List[Tuple[np.ndarray, Any]] = []
        self.stream = device.xp.cuda.Stream(non_blocking=True)

    def order(self, index: np.ndarray) -> Callable[[], Array]:
        """What the other thread has to do to bring these images to the GPU."""
        xp = self.device.xp
        if not self.targets or len(index) > len(self.targets[0]):
            self.targets = []  # before the new ones
            self.targets = [xp.empty((len(index),) + self.shape, np.float32) for _ in range(2)]
        self.targets.reverse()
        target, free = self.targets[0][:len(index)], xp.cuda.Event(disable_timing=True)
        free.record()
        return partial(self.fill, target, index, free)

    def fill(self, target: Array, index: np.ndarray, free: Any) -> Array:
        """``target``, once the images of ``index`` are there."""
        with self.device.current():  # which is each thread's own
            self.stream.wait_event(free)
            try:
                for turn, start in enumerate(range(0, len(index), self.piece)):
                    self.send(index[start:start + self.piece], target[start:start + self.piece], turn % 2)
            finally:  # also after an image that cannot be read nothing may still be on its way
                self.stream.synchronize()
        return target

    def send(self, index: np.ndarray, target: Array, turn: int) -> None:
        buffer, sent = self.buffer(turn)
        sent.synchronize()
        self.read(index, buffer[:len(index)])
        target.set(buffer[:len(index)], stream=self.stream)
        sent.record(self.stream)

    def buffer(self, index: int) -> Tuple[np.ndarray, Any]:
        """A pinned buffer (piece, N, N) float32 and the event that its content has been sent."""
        cuda = self.device.xp.cuda
        if index == len(self.pinned):
            shape = (self.piece,) + self.shape
            memory = cuda.alloc_pinned_memory(4 * int(np.prod(shape)))
            array = np.frombuffer(memory, np.float32, int(np.prod(shape))).reshape(shape)
            self.pinned.append((array, cuda.Event(disable_timing=True)))
        return self.pinned[index]
