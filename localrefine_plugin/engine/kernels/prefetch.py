"""Images read, and sent to a GPU, while the device computes on those before them."""
from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Callable, List, Optional, Tuple

import numpy as np

from ..records.errors import OtherPixels
from .device import Device

Array = Any
PINNED_BYTES = 32 << 20  # of each of the two buffers; long enough a copy to hide its start, short beside a batch


Read = Callable[..., np.ndarray]
"""Images (b, N, N) float32 of an index (b,); with a second argument (b, N, N), in that array.

One that has ``pixels_of`` (io.mrc.ImageReader) says by it whether the file of an image holds float16, and also fills
arrays of that type.
"""


def from_array(images: np.ndarray) -> Read:
    """Reads images that are in memory."""
    def read(index: np.ndarray, out: Optional[np.ndarray] = None) -> np.ndarray:
        return np.take(images, index, axis=0, out=out)
    return read


class Prefetch:
    """``read`` one batch ahead, in a thread of its own.

    Called as ``read`` is. For index a … b it hands out the images and begins to read as many of those that follow.
    Whoever asks for other images gets them as well, only later. On a GPU the images are the GPU's, and their memory is
    written to again during the call after the next: a batch must have been asked of the GPU before that. Images that
    are float16 in their files are sent as they are and become float32 on the GPU.

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
        try:
            images = self.images.result()
        except OtherPixels:  # the stacks are of both kinds
            assert self.transfer is not None
            self.transfer.pixels_of = None
            self.begin(index)
            images = self.images.result()
        self.images = None
        if images.dtype != np.float32:
            images = images.astype(np.float32)
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
        self.pixels_of: Optional[Callable[[int], np.dtype]] = getattr(read, "pixels_of", None)
        self.targets: List[Array] = []
        self.pinned: List[Tuple[np.ndarray, Any]] = []
        self.stream = device.xp.cuda.Stream(non_blocking=True)

    def order(self, index: np.ndarray) -> Callable[[], Array]:
        """What the other thread has to do to bring these images to the GPU."""
        xp = self.device.xp
        kind = np.dtype(np.float32) if self.pixels_of is None else self.pixels_of(int(index[0]))
        if not self.targets or len(index) > len(self.targets[0]) or self.targets[0].dtype != kind:
            self.targets = []  # before the new ones
            self.targets = [xp.empty((len(index),) + self.shape, kind) for _ in range(2)]
        self.targets.reverse()
        target, free = self.targets[0][:len(index)], xp.cuda.Event(disable_timing=True)
        free.record()
        return partial(self.fill, target, index, free, kind)

    def fill(self, target: Array, index: np.ndarray, free: Any, kind: np.dtype) -> Array:
        """``target``, once the images of ``index`` are there."""
        with self.device.current():  # which is each thread's own
            self.stream.wait_event(free)
            try:
                for turn, start in enumerate(range(0, len(index), self.piece)):
                    self.send(index[start:start + self.piece], target[start:start + self.piece], turn % 2, kind)
            finally:  # also after an image that cannot be read nothing may still be on its way
                self.stream.synchronize()
        return target

    def send(self, index: np.ndarray, target: Array, turn: int, kind: np.dtype) -> None:
        buffer, sent = self.buffer(turn)
        sent.synchronize()
        shape = (len(index),) + self.shape
        part = buffer.view(kind)[:int(np.prod(shape))].reshape(shape)
        self.read(index, part)
        target.set(part, stream=self.stream)
        sent.record(self.stream)

    def buffer(self, index: int) -> Tuple[np.ndarray, Any]:
        """A pinned buffer for ``piece`` images of float32, flat, and the event that its content has been sent."""
        cuda = self.device.xp.cuda
        if index == len(self.pinned):
            pixels = self.piece * int(np.prod(self.shape))
            array = np.frombuffer(cuda.alloc_pinned_memory(4 * pixels), np.float32, pixels)
            self.pinned.append((array, cuda.Event(disable_timing=True)))
        return self.pinned[index]
