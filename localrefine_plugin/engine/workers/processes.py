"""A team of processes on one machine: a GPU each, or each a share of the cores.

The first member, which the user started, starts the others: the verb ``member``, with one end of a pipe.
"""
from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Dict, Iterator, List, Optional, Sequence

from ..records.errors import InputError
from .linked import LinkedTeam

LOOK_SECONDS = 0.5  # how often a member that waits looks whether the others are there
PATIENCE_SECONDS = 10.0
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


class Failure:
    """What a member that stopped says to the first one."""

    def __init__(self, error: InputError):
        self.said = error.as_dict()

    def error(self) -> InputError:
        return InputError(self.said["problem"], self.said["input"], self.said["remedy"])


class Processes(LinkedTeam):
    """The first member; ``devices`` are those of all members, ``threads`` those of each.

    To be used with ``with``: the other members end with the block.
    """

    def __init__(self, devices: Sequence[str], threads: int):
        super().__init__(0, len(devices))
        self.links: Dict[int, Connection] = {}
        self.children: Dict[int, "subprocess.Popen[bytes]"] = {}
        environment = dict(os.environ, NUMBA_NUM_THREADS=str(threads), OMP_NUM_THREADS=str(threads))
        with deaf_to_ctrl_c():
            for rank in self.others:
                ours, theirs = Pipe()
                os.set_inheritable(theirs.fileno(), True)
                command = member_command(theirs.fileno(), rank, self.size, devices[rank], threads)
                self.children[rank] = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
                theirs.close()
                self.links[rank] = ours

    def share(self, threads: int) -> int:
        return max(1, threads // self.size)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            try:
                self.order(None)
            except InputError:
                pass  # it ended already, and nobody needs it any more
        for child in self.children.values():
            try:
                child.wait(PATIENCE_SECONDS if kind is None else 0)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def send(self, rank: int, what: Any) -> None:
        try:
            self.links[rank].send(what)
        except OSError:
            raise self.ended(rank) from None

    def receive(self, rank: int) -> Any:
        while not self.links[rank].poll(LOOK_SECONDS):
            self.check()
        try:
            what = self.links[rank].recv()
        except (EOFError, OSError):
            raise self.ended(rank) from None
        if isinstance(what, Failure):
            raise what.error()
        return what

    def check(self) -> None:
        for rank, child in self.children.items():
            if child.poll() is not None:
                raise self.ended(rank)

    def ended(self, rank: int) -> InputError:
        """Why a member ended: what it said, or how it was stopped."""
        link, child = self.links[rank], self.children[rank]
        try:
            while link.poll():
                what = link.recv()
                if isinstance(what, Failure):
                    return what.error()
        except (EOFError, OSError):
            pass  # it said nothing: how it was stopped is all there is to say
        status = child.wait()
        how = f"signal {-status} ({signal.Signals(-status).name})" if status < 0 else f"exit status {status}"
        killer = ", perhaps because the machine has no memory left" if status == -signal.SIGKILL else ""
        return InputError(f"the process of {self.member_name(rank)} was stopped by {how}{killer}", "alignment",
                          "give the same command with --continue; the log may say more")

    def member_name(self, rank: int) -> str:
        arguments: List[str] = self.children[rank].args  # type: ignore[assignment]
        return f"{super().name().replace('rank 0', f'rank {rank}')}, device {arguments[-3]},"


class Joined(LinkedTeam):
    """A member that the first one started, with its end ``descriptor`` of a pipe."""

    def __init__(self, descriptor: int, rank: int, size: int):
        super().__init__(rank, size)
        end_with_parent()
        self.link = Connection(descriptor)

    def send(self, rank: int, what: Any) -> None:
        self.link.send(what)

    def receive(self, rank: int) -> Any:
        try:
            return self.link.recv()
        except EOFError:  # the first member has gone
            return None


def member_command(descriptor: int, rank: int, size: int, device: str, threads: int) -> List[str]:
    return [sys.executable, "-m", "localrefine_plugin.engine", "member", str(descriptor), str(rank), str(size),
            "--device", device, "--threads", str(threads)]


def end_with_parent() -> None:
    """Let the kernel end this process when the one that started it has ended, however that was; Linux only."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started here inherit that Ctrl-C does nothing: the one that started them stops them, and says so."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before: Optional[Any] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
