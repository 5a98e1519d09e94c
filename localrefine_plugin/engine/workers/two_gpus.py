"""The two half-sets at the same time, each on a GPU of its own."""
from __future__ import annotations

import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import Iterator, List, Sequence

from ..io.run_folder import RunFolder, read_json
from ..records.errors import InputError


def align_on_two_gpus(run: str, iteration: int, devices: Sequence[str], threads: int) -> None:
    """The verb ``align`` for half-set 1 on the first device and half-set 2 on the second, as processes of their own.

    Raises
    ------
    InputError : what stopped one of them. The other one was waited for, and what it did is kept.
    """
    share = max(1, threads // 2)
    with deaf_to_ctrl_c():
        children = [subprocess.Popen(align_command(run, iteration, half, device, share))
                    for half, device in zip((1, 2), devices)]
    try:
        stopped = [half for half, child in zip((1, 2), children) if child.wait() != 0]
    except KeyboardInterrupt:
        for child in children:
            child.terminate()
            child.wait()
        raise
    if stopped:
        raise reason(RunFolder(run), iteration, stopped)


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started here inherit that Ctrl-C does nothing: the one that started them stops them, and says so."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def align_command(run: str, iteration: int, half: int, device: str, threads: int) -> List[str]:
    return [sys.executable, "-m", "localrefine_plugin.engine", "align", run, "--iteration", str(iteration),
            "--half", str(half), "--device", device, "--threads", str(threads)]


def reason(run: RunFolder, iteration: int, stopped: Sequence[int]) -> InputError:
    """What a process that stopped left in error.json."""
    try:
        said = read_json(run.error)
        return InputError(said["problem"], said["input"], said["remedy"])
    except (OSError, ValueError, KeyError):  # killed: it had no time to say why
        return InputError(f"the process of half-set {' and '.join(map(str, stopped))} was stopped from outside",
                          f"iteration {iteration}", "continue the run; the log may say more")
