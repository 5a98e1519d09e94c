"""How a verb that failed says so: one sentence on standard error, and error.json in the run folder."""
from __future__ import annotations

import argparse
import errno
import sys
import traceback
from pathlib import Path
from typing import Dict, Optional

from .records.errors import InputError
from .startup import PROGRAM, discard_output


def _folder(options: argparse.Namespace) -> Optional[str]:
    """Where error.json goes; None for verbs that only read."""
    if options.verb in ("report", "bundle"):
        return None
    folder: Optional[str] = getattr(options, "output", getattr(options, "run", None))
    return folder


def _command(options: argparse.Namespace) -> str:
    words = [options.verb] + [f"--{name} {getattr(options, name)}" for name in ("iteration", "half")
                              if hasattr(options, name)]
    return " ".join(words)


def forget_error(options: argparse.Namespace) -> None:
    """Remove the error.json of an earlier attempt at this step; another step's, which may be running, stays."""
    folder = _folder(options)
    if folder is None:
        return
    from .io.run_folder import RunFolder, read_json
    path = RunFolder(folder).error
    try:
        if options.verb in ("prepare", "refine") or read_json(path).get("command") == _command(options):
            path.unlink()
    except (OSError, ValueError, AttributeError):  # there is none, or it is not ours
        pass


def fail(sentence: str, options: Optional[argparse.Namespace] = None, content: Optional[Dict[str, str]] = None) -> int:
    """Say the sentence; write error.json if there is a folder for it."""
    folder = _folder(options) if options is not None else None
    if options is not None and folder is not None and content is not None:
        from .io.run_folder import RunFolder, write_json
        # a file name that is not UTF-8 comes as surrogates, which JSON in UTF-8 cannot hold
        texts = {key: text.encode("utf-8", "backslashreplace").decode() for key, text in content.items()}
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            write_json(RunFolder(folder).error, dict(texts, command=_command(options)))
        except (OSError, ValueError):
            pass  # the sentence on standard error is all that is left
    try:
        print("error: " + " ".join(sentence.split()), file=sys.stderr)
    except BrokenPipeError:
        discard_output(2)
    return 1


def described(failure: Exception, command: str) -> InputError:
    """What made a computation fail, as a sentence: bad input, the machine, or a mistake of the program."""
    if isinstance(failure, InputError):
        return failure
    if isinstance(failure, MemoryError):
        return InputError("there is not enough memory", "computation", "use another machine or a smaller box")
    if isinstance(failure, OSError) and failure.errno == errno.EIO and failure.filename is None:
        return InputError("what reads it has gone: the terminal, mpirun, or the queue has ended it", "standard output",
                          "continue the run")
    if isinstance(failure, OSError):
        return InputError(failure.strerror or str(failure), _file_of(failure),
                          "check free space and permissions, then continue the run")
    return InputError(f"unexpected {type(failure).__name__} ({failure})", f"{PROGRAM} {command}",
                      "please report it, with the file error.json of the run folder")


def _file_of(failure: OSError) -> str:
    """The file an error is about. Numba, where it keeps compiled code, says none, but knows the folder."""
    if failure.filename:
        return str(failure.filename)
    for frame, _ in traceback.walk_tb(failure.__traceback__):
        folder = getattr(frame.f_locals.get("self"), "_cache_path", None)
        if folder:
            return f"compiled code in {folder}"
    return "a file"


def fail_because(failure: Exception, options: argparse.Namespace) -> int:
    """Say what made a verb fail; the traceback of what is not bad input goes to error.json, for a bug report."""
    error = described(failure, _command(options))
    if isinstance(failure, (InputError, MemoryError)):
        return fail(str(error), options, error.as_dict())
    if not isinstance(failure, OSError) and _folder(options) is None:
        traceback.print_exc()
    return fail(str(error), options, dict(error.as_dict(), traceback=traceback.format_exc()))
