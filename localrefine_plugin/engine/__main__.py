"""The command line of the engine: ``python -m localrefine_plugin.engine VERB``.

Nothing but the standard library is imported before the verb is known and the number of threads is in
the environment, where numpy's and numba's thread pools look for it when they are imported.
"""
from __future__ import annotations

import argparse
import os
import sys
from typing import List, Optional

from .command_line import parser
from .failures import fail, fail_because
from .kernels.host import rank_of_launcher, worker_count
from .startup import discard_output, find_compiler_cache, open_streams

THREAD_VARIABLES = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")
# The matrices given to BLAS and LAPACK are small, and with more threads their last bits may differ (OpenBLAS 0.3.21)
BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
COMPILED = ("refine", "prepare", "forecast", "align", "merge", "finish", "validate", "film", "compose", "recentre",
            "selftest", "member")
SHARED = ("refine", "align", "member")  # done by all ranks that mpirun started
STOPPED = 130  # as a shell calls a program that Ctrl-C ended


def main(arguments: Optional[List[str]] = None) -> int:
    """Run one verb; the exit status: 0, or 1 after one sentence on standard error, or 130 after Ctrl-C."""
    open_streams()
    options = argparse.Namespace(verb="")
    try:
        try:
            options = parser().parse_args(arguments)
            status = _run(options)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        return _unheard(options)
    except KeyboardInterrupt:
        print("stopped" + _how_to_go_on(options), file=sys.stderr)
        return STOPPED
    return status


def _run(options: argparse.Namespace) -> int:
    if rank_of_launcher() and options.verb not in SHARED:
        return 0  # the first rank does it
    if hasattr(options, "threads"):
        options.threads = worker_count(options.threads)
        if "numba" not in sys.modules:  # numba refuses another number once it runs
            os.environ.update({name: str(options.threads) for name in THREAD_VARIABLES})
            os.environ.update({name: "1" for name in BLAS_VARIABLES})
    note = find_compiler_cache() if options.verb in COMPILED and "numba" not in sys.modules else ""
    if note:
        print(note, file=sys.stderr)
    from .prepare.arguments import OutputError
    try:
        options.run_verb(options)
    except OutputError as error:
        return fail(str(error))
    except BrokenPipeError:
        raise
    except Exception as failure:
        return fail_because(failure, options)
    return 0


def _unheard(options: argparse.Namespace) -> int:
    """The reader of standard output has gone: `report RUN | head`. Only a computation says that it ended there."""
    discard_output(1)
    return fail("the reader of standard output has gone" + _how_to_go_on(options)) if _how_to_go_on(options) else 1


def _how_to_go_on(options: argparse.Namespace) -> str:
    if options.verb in ("refine", "prepare"):
        instead = " instead of --overwrite" if options.mode == "overwrite" else ""
        return f"; to go on, give the same command with --continue{instead}"
    if options.verb in ("align", "merge", "finish", "validate", "film"):
        return "; to go on, give the same command again"
    return ""


if __name__ == "__main__":
    sys.exit(main())
