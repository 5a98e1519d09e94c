"""What the process needs before anything else: sound standard streams, and a place for compiled code.

Standard library only, for nothing heavy may be imported before the number of threads is in the environment.
"""
from __future__ import annotations

import atexit
import codecs
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path
from typing import Tuple

PROGRAM = "python -m localrefine_plugin.engine"
CACHE_VARIABLE = "NUMBA_CACHE_DIR"
# What a terminal or log of ASCII shows, so that "3 Å × 4" does not become "3 ? ? 4"
PLAIN = {"Å": "A", "°": " deg", "…": "...", "×": "x", "−": "-", "–": "-", "·": "*", "±": "+/-", "σ": "sigma", "≥": ">=",
         "≤": "<=", "½": "1/2", "²": "^2", "³": "^3", "→": "->", "µ": "u", "₀": "0"}


def open_streams() -> None:
    """Standard streams that no character stops, and no file of ours in the place of one that the shell closed."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor < 3:
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)
    codecs.register_error("plain", plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain", line_buffering=True)


def plain(error: UnicodeError) -> Tuple[str, int]:
    """An error handler of codecs: what an encoding lacks in letters it has, bytes of file names as \\xff."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_plain_letter(letter) for letter in error.object[error.start:error.end]), error.end


def _plain_letter(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # what surrogateescape made of a byte
        return f"\\x{ord(letter) - 0xdc00:02x}"
    return PLAIN.get(letter, "?")


def discard_output(descriptor: int) -> None:
    """Send what is still written to standard output (1) or error (2) nowhere, once its reader has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def find_compiler_cache() -> str:
    """Give Numba a temporary folder for compiled code where it finds no other; returns what to tell the user, or "".

    Numba keeps compiled functions beside their source, or else in the user's cache folder. Where it can write to
    neither, as in a container that is read-only, it stops with a RuntimeError.
    """
    package = Path(__file__).resolve().parent / "kernels" / "__pycache__"
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "numba"
    given = os.environ.get(CACHE_VARIABLE)
    if any(_writable(folder) for folder in ([Path(given)] if given else [package, home])):
        return ""
    folder = _temporary_cache()
    os.environ[CACHE_VARIABLE] = str(folder)
    return (f"note: compiled code is kept in {folder}, because {given or f'neither {package} nor {home}'} can be "
            f"written to; set {CACHE_VARIABLE} to a folder of your own to keep it elsewhere")


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=str(folder)).close()
    except OSError:
        return False
    return True


def _temporary_cache() -> Path:
    """A folder of this user, the same in every process; a new one, for this process, if others could write to it."""
    folder = Path(tempfile.gettempdir()) / f"localrefine_compiled_{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
        if (stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o022
                and _writable(folder)):
            return folder
    except OSError:
        pass  # there is a file of that name
    own = Path(tempfile.mkdtemp(prefix="localrefine_compiled_"))
    atexit.register(shutil.rmtree, str(own), ignore_errors=True)
    return own
