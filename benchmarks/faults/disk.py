"""What a user reads when the disk is full, may not be written or read, or is gone; and that the run goes on afterwards.

Each case breaks something, runs the engine from its command line, mends it, and continues. A small file system in
memory is mounted where that is permitted; elsewhere a limit on the size of files stands for it.

Data: the images of noise that reliability.py has made by growth/memory.py.
"""
from __future__ import annotations

import ctypes
import os
import resource
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Sequence

import numpy as np

from localrefine_plugin.engine.__main__ import main as engine_main
from localrefine_plugin.engine.io.run_folder import RunFolder

from .kills import SETTINGS, forked, results, temporary_files

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
CAPABILITY_VERSION = 0x20080522


@dataclass(frozen=True)
class Outcome:
    """What was broken, what the engine said on standard error, and whether the run went on to the same bits."""

    broken: str
    said: str
    continued: bool

    def good(self) -> bool:
        """One sentence that names a file, no traceback, and nothing lost."""
        one = self.said.startswith("error: ") and self.said.count("\n") == 1 and "unexpected" not in self.said
        return one and "/" in self.said and self.continued


def obey_permissions() -> None:
    """Let permissions bind this process although it is root's."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    data[0] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)  # of the effective ones
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Callable[[str], None]]:
    """A file system of this size in ``folder``; gives a function that mounts it anew with other options.

    Raises PermissionError where that is not permitted.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def mount(options: str) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], stderr=subprocess.PIPE,
                              text=True)
        if done.returncode:
            raise PermissionError(done.stderr.strip())
    mount(f"size={kilobytes}k")
    try:
        yield lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class Cases:
    """Every case, on the same inputs as a run that nobody disturbed."""

    def __init__(self, inputs: Sequence[str], work: Path):
        self.inputs, self.work = list(inputs), work
        self.settings = work / "settings.json"
        self.settings.write_text(f'{{"max_iterations": {SETTINGS.max_iterations}}}')
        straight = work / "undisturbed"
        said = self.engine("refine", straight)
        if said:
            raise RuntimeError(said)
        self.expected = results(straight)
        self.size_kb = sum(path.stat().st_size for path in straight.rglob("*") if path.is_file()) // 1024

    def engine(self, verb: str, output: Path, *more: str, hook: Optional[Callable[[], None]] = None) -> str:
        """What a verb says on standard error."""
        names = "--particles", "--half-map-1", "--half-map-2", "--mask"
        words = [word for pair in zip(names, self.inputs) for word in pair]
        words = [verb, *words, "--output", str(output), "--settings", str(self.settings)]
        if verb not in ("refine", "prepare"):
            words = [verb, str(output)]
        words += [*more, "--threads", "1"] + ([] if verb in ("merge", "finish") else ["--device", "cpu"])
        log = self.work / "stderr.txt"

        def work() -> None:
            os.dup2(os.open(str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            if hook is not None:
                hook()
            engine_main(words)
        forked(work)
        return log.read_text(encoding="utf-8", errors="replace")

    def continues(self, output: Path) -> bool:
        said = self.engine("refine", output, "--continue")
        return not said and results(output) == self.expected and not temporary_files(output)

    def all(self) -> List[Outcome]:
        found = [self.file_limit(), self.permission_to_write(), self.stack_gone(), self.stack_cut_short(),
                 self.folder_gone()]
        found += [self.permission_to_read(i) for i in range(4)] + [self.permission_to_read_images()]
        try:
            found += [self.disk_full(share) for share in (0.1, 0.35, 0.6, 0.95)] + [self.read_only_disk()]
        except PermissionError as error:
            print(f"not tried, mounting is not permitted: {error}")
        return found

    def disk_full(self, share: float) -> Outcome:
        folder = self.work / "small"
        with small_disk(folder, int(share * self.size_kb)) as mount:
            said = self.engine("refine", folder / "run")
            mount(f"size={10 * self.size_kb}k")
            return Outcome(f"disk full after {100 * share:.0f} % of the run's files", said,
                           self.continues(folder / "run"))

    def read_only_disk(self) -> Outcome:
        folder = self.work / "small"
        with small_disk(folder, 10 * self.size_kb) as mount:
            self.engine("prepare", folder / "run")
            mount("ro")
            said = self.engine("align", folder / "run", "--iteration", "1", "--half", "1")
            mount("rw")
            return Outcome("disk turned read-only after prepare", said, self.continues(folder / "run"))

    def file_limit(self) -> Outcome:
        output = self.work / "limited"
        said = self.engine("refine", output, hook=lambda: limit_files(60_000))
        return Outcome("files limited to 60 kB (ulimit -f)", said, self.continues(output))

    def permission_to_write(self) -> Outcome:
        output = self.work / "read-only"
        self.engine("prepare", output)
        output.chmod(0o555)
        said = self.engine("align", output, "--iteration", "1", "--half", "1", hook=obey_permissions)
        output.chmod(0o755)
        return Outcome("output folder not writable (0555)", said, self.continues(output))

    def permission_to_read(self, number: int) -> Outcome:
        path, output = Path(self.inputs[number]), self.work / f"unreadable {number}"
        path.chmod(0)
        said = self.engine("refine", output, hook=obey_permissions)
        path.chmod(0o644)
        return Outcome(f"{path.name} not readable (0000)", said, self.continues(output))

    def images(self) -> Path:
        return Path(self.inputs[0]).with_name("images.mrcs")

    def permission_to_read_images(self) -> Outcome:
        output = self.work / "unreadable images"
        self.engine("prepare", output)
        self.images().chmod(0)
        said = self.engine("align", output, "--iteration", "1", "--half", "2", hook=obey_permissions)
        self.images().chmod(0o644)
        return Outcome("images not readable after prepare", said, self.continues(output))

    def stack_gone(self) -> Outcome:
        output, away = self.work / "no images", self.images().with_name("away")
        self.engine("prepare", output)
        self.images().rename(away)
        said = self.engine("align", output, "--iteration", "1", "--half", "1")
        away.rename(self.images())
        return Outcome("scratch with the images gone after prepare", said, self.continues(output))

    def stack_cut_short(self) -> Outcome:
        """While it is read: the file is complete when it is opened."""
        from localrefine_plugin.engine.io import mrc
        output, whole = self.work / "short images", self.images().read_bytes()
        self.engine("prepare", output)
        read = mrc.Stack.images_into

        def cut() -> None:
            def images_into(stack: mrc.Stack, number: int, out: np.ndarray) -> None:
                os.truncate(stack._path, 4096)
                read(stack, number, out)
            mrc.Stack.images_into = images_into  # type: ignore[method-assign]
        said = self.engine("align", output, "--iteration", "1", "--half", "1", hook=cut)
        self.images().write_bytes(whole)
        return Outcome("images cut short while they are read", said, self.continues(output))

    def folder_gone(self) -> Outcome:
        output, away = self.work / "gone", self.work / "away"
        self.engine("prepare", output)

        def vanish() -> None:
            from localrefine_plugin.engine import refine
            save = refine.save_half

            def save_half(*arguments, **named):  # type: ignore[no-untyped-def]
                output.rename(away)
                return save(*arguments, **named)
            refine.save_half = save_half
        said = self.engine("align", output, "--iteration", "1", "--half", "1", hook=vanish)
        shutil.rmtree(output, ignore_errors=True)  # holds an error.json at most
        away.rename(output)
        return Outcome("scratch with the run folder gone before the half-map is written", said,
                       self.continues(output) and RunFolder(output).results_complete())
