"""Kills and broken disks: what happened to runs that were disturbed, written into docs/reference/reliability.md.

    python -m benchmarks.faults.reliability kills --count 40 [--write]
    python -m benchmarks.faults.reliability protocol --count 40 [--write]
    python -m benchmarks.faults.reliability ranks --count 20 [--write]
    python -m benchmarks.faults.reliability disk [--write]
    python -m benchmarks.faults.reliability sample        the same on a small scale, for the test suite

The exit status is 0 if nothing was lost.

Data: those of kills.py, kills_scipion.py, kills_ranks.py and disk.py.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from ..growth.memory import PAGE, write_data
from ..page import replace_section, table
from . import disk, kills, kills_ranks

PARTICLES, BOX = 60, 32
SHARED_PARTICLES = 1000  # enough for several members
HEAD = ["path", "kills", "at random moments", "inside writes", "different results", "finished steps repeated",
        "temporary files left"]


def row(path: str, tally: kills.Tally) -> List[str]:
    inside = sum(tally.inside[name] for name in kills.INSIDE)
    return [path] + [str(n) for n in (tally.kills, tally.inside["random"], inside, tally.different, tally.repeated,
                                      tally.temporary)]


def kill_text(count: int, tallies: Dict[str, kills.Tally]) -> str:
    return (f"`python -m benchmarks.faults.reliability kills --count {count} --write`, two iterations of {PARTICLES} "
            f"images of {BOX} px. Each run is killed once (SIGKILL) and continued:\n\n"
            + table(HEAD, [row(path, tally) for path, tally in tallies.items()])
            + "\n\nFinished steps at the kill: "
            + "; ".join(f"({path}) " + ", ".join(f"{steps} steps {n} times" for steps, n in sorted(tally.steps.items()))
                        for path, tally in tallies.items()) + ".")


def protocol_text(count: int, tally: kills.Tally) -> str:
    return (f"`python -m benchmarks.faults.reliability protocol --count {count} --write`, the protocol in a Scipion "
            "project. All its processes are killed at a random moment, and it is continued, until it is finished:\n\n"
            + table(HEAD, [row("Scipion protocol", tally)]))


def disk_text(outcomes: Sequence[disk.Outcome], folder: str) -> str:
    rows = [[o.broken, o.said.replace(folder, "").strip(), "yes" if o.continued else "NO"] for o in outcomes]
    return ("`python -m benchmarks.faults.reliability disk --write`. *Message* is the text on standard error. *Same "
            "bits*: the run is continued after the cause is removed, and compared with an undisturbed run.\n\n"
            + table(["problem", "message", "same bits"], rows))


def run_kills(count: int, every: int, write: bool) -> bool:
    tallies: Dict[str, kills.Tally] = {}
    for path in kills.PATHS:
        with tempfile.TemporaryDirectory() as work:
            inputs = list(write_data(Path(work) / "data", PARTICLES, BOX).values())
            tallies[path] = kills.engine_campaign(inputs, Path(work), path, count, every=every)
        print(*row(path, tallies[path]), sep="\t", flush=True)
    if write:
        write_section("kills", kill_text(count, tallies))
    return all(tally.clean() and tally.kills >= count for tally in tallies.values())


def run_protocol(count: int, write: bool) -> bool:
    from .kills_scipion import protocol_campaign  # Scipion's environment is set before it is imported
    with tempfile.TemporaryDirectory() as work:
        tally = protocol_campaign(Path(work), count)
    print(*row("Scipion protocol", tally), sep="\t", flush=True)
    if write:
        write_section("protocol-kills", protocol_text(count, tally))
    return tally.clean() and tally.kills >= count


def run_ranks(count: int, write: bool) -> bool:
    tallies: Dict[str, kills.Tally] = {}
    slowest = 0.0
    for way in kills_ranks.WAYS:
        with tempfile.TemporaryDirectory() as work:
            inputs = list(write_data(Path(work) / "data", SHARED_PARTICLES, BOX).values())
            tallies[way], seconds = kills_ranks.ranks_campaign(inputs, Path(work), way, count)
        slowest = max(slowest, seconds)
        print(*row(way, tallies[way]), sep="\t", flush=True)
    if write:
        text = (f"`python -m benchmarks.faults.reliability ranks --count {count} --write`, two iterations of "
                f"{SHARED_PARTICLES} images of {BOX} px. One process of each run, `mpirun` among them, is killed at a "
                f"random moment, and the run is continued. All processes had ended within {slowest:.0f} s:\n\n")
        write_section("rank-kills", text + table(HEAD, [row(way, tally) for way, tally in tallies.items()]))
    return all(tally.clean() and tally.kills >= count for tally in tallies.values())


def run_disk(write: bool) -> bool:
    with tempfile.TemporaryDirectory() as work:
        inputs = list(write_data(Path(work) / "data", PARTICLES, BOX).values())
        outcomes = disk.Cases(inputs, Path(work)).all()
    for o in outcomes:
        print("ok" if o.good() else "LOST", o.broken, o.said.replace(work, "").strip(), sep="\t", flush=True)
    if write:
        write_section("disk", disk_text(outcomes, work))
    return all(o.good() for o in outcomes)


def write_section(name: str, content: str) -> None:
    PAGE.write_text(replace_section(PAGE.read_text(encoding="utf-8"), name, content), encoding="utf-8")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("kills", "protocol", "ranks", "disk", "sample"))
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--write", action="store_true", help="write the section of docs/reference/reliability.md")
    options = parser.parse_args(arguments)
    good = {"kills": lambda: run_kills(options.count, 1, options.write),
            "protocol": lambda: run_protocol(options.count, options.write),
            "ranks": lambda: run_ranks(options.count, options.write), "disk": lambda: run_disk(options.write),
            "sample": lambda: run_kills(1, 17, False) & run_disk(False)}[options.what]()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
