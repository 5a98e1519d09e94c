"""What the job of cryoSPARC needs of cryosparc-tools, whose versions 4 and 5 say some things differently.

| | version 4 | version 5 |
|---|---|---|
| outputs of a job | ``job.doc["output_result_groups"]``, ``["output_results"]`` | ``job.outputs`` |
| folder of a project | ``project.dir()`` | ``project.dir`` |
| name of a slot in its specification | ``prefix`` | ``name`` |
| ``job.stop(error)`` | only whether it failed | the sentence, into the log as well |

Sources: cryosparc-tools 4.5.0 and 5.0.3 (job.py, project.py, tools.py, spec.py) and their change log.
"""
from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple

from ..engine.records.errors import InputError

SECRETS = ("CRYOSPARC_LICENSE_ID", "CRYOSPARC_EMAIL", "CRYOSPARC_PASSWORD")
ENDED = ("killed", "failed", "completed")


class Source(NamedTuple):
    """An output of a job: ``slots`` has the data type of each of its low-level results."""

    job: str
    output: str
    type: str
    slots: Dict[str, str]

    @property
    def name(self) -> str:
        return f"{self.job}.{self.output}"


def connect(**where: Any) -> Any:
    """The client. ``where``: url, host, base_port; what is None comes from the environment, as do the secrets."""
    try:
        from cryosparc.tools import CryoSPARC
    except ImportError as error:
        raise InputError(f"cannot be imported ({error})", "cryosparc-tools",
                         "install the version of your cryoSPARC: pip install 'cryosparc-tools~=4.7.0'") from None
    names = dict(url="base_url", host="host", base_port="base_port")
    try:
        return CryoSPARC(**{names[name]: value for name, value in where.items() if value is not None})
    except Exception as error:  # each version has its own exceptions, and asserts
        raise InputError(f"cannot be reached ({' '.join(str(error).split())})", "cryoSPARC",
                         f"set {', '.join(SECRETS)}, CRYOSPARC_MASTER_HOSTNAME and CRYOSPARC_BASE_PORT; version 5: "
                         "CRYOSPARC_BASE_URL, after 'python -m cryosparc.tools login'") from error


def find(what: Any, uid: str, kind: str) -> Any:
    try:
        return what(uid)
    except Exception as error:
        raise InputError(f"cannot be found ({' '.join(str(error).split())})", f"{kind} {uid}",
                         "give the number that cryoSPARC shows, with its letter") from error


def is_new(controller: Any) -> bool:
    """Whether the client is of version 5."""
    return hasattr(controller, "model")


def folder_of(project: Any) -> Path:
    """The folder of a project, where the paths in the data sets begin."""
    found = project.dir if isinstance(project.dir, os.PathLike) else project.dir()
    if not Path(found).is_dir():
        raise InputError("is not on this machine", f"folder {found} of project {project.uid}",
                         "run this on a machine that sees it under the same path")
    return Path(found)


def outputs_of(job: Any) -> List[Source]:
    """All outputs of a job with their slots."""
    if is_new(job):
        return [Source(job.uid, name, output.type, {r.name: r.dtype for r in output.results})
                for name, output in job.outputs.items()]
    found = {group["name"]: Source(job.uid, group["name"], group["type"], {})
             for group in job.doc["output_result_groups"]}
    for result in job.doc["output_results"]:
        found[result["group_name"]].slots[result["name"]] = result["type"].split(".")[-1]
    return list(found.values())


def slot(job: Any, name: str, dtype: str) -> Dict[str, Any]:
    """The specification of a slot of ``job``."""
    return {"name" if is_new(job) else "prefix": name, "dtype": dtype, "required": True}


@contextmanager
def running(job: Any) -> Iterator[None]:
    """End the job as completed, or as failed with the sentence of what was raised."""
    error = "it was stopped"  # by a signal
    try:
        yield
        error = ""
    except InputError as failure:
        error = str(failure)
        raise
    except Exception as failure:
        error = f"unexpected {type(failure).__name__} ({failure})"
        raise
    finally:
        if error and not is_new(job):
            job.log(error, level="error")
        job.stop(error)


@contextmanager
def may_be_away(what: str) -> Iterator[None]:
    """A server that is away for a moment does not end a refinement; it is said on standard error."""
    try:
        yield
    except Exception as error:
        print(f"{what}: {error}", file=sys.stderr, flush=True)


def log(job: Any, text: str, level: str = "text") -> None:
    """A line of the job's log, and of ours."""
    print(text, flush=True)
    with may_be_away(f"not in the log of {job.uid}"):
        job.log(text, level=level)


def log_plot(job: Any, figure: Any, text: str) -> None:
    with may_be_away(f"the picture '{text}' is not in the log of {job.uid}"):
        job.log_plot(figure, text)


def was_ended(job: Any) -> bool:
    """Whether somebody has ended the job in cryoSPARC's window."""
    with may_be_away(f"the state of {job.uid} is not known"):
        return job.refresh().status in ENDED
    return False
