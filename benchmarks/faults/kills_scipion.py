"""The protocol of a Scipion project killed at random moments, with all its processes, and continued until it is done.

One run is killed, continued, killed again … until it ends by itself; then another begins, until there were as many
kills as asked for. Its results must be those of a run that nobody disturbed.

Data: 60 particles of examples/simulate.py, box 32.
"""
from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any, Dict, List

from examples import demo, simulate
from examples.headless import set_environment

from .kills import Tally, finished_steps, results, temporary_files

OPTIONS = simulate.Options(particles=60, box_size=32, pixel_size=9.0, snr=2.0, threads=1)
PARAMETERS = dict(maxIterations=1, numberOfThreads=1, useGpu=False)


def protocol_campaign(work: Path, count: int, seed: int = 1) -> Tally:
    set_environment(work)
    from pyworkflow import Config
    Config.getDomain().registerPlugin("localrefine_plugin")
    simulate.simulate(work / "data", OPTIONS)
    demo.OPTIONS = OPTIONS
    project = demo.new_project("kills")
    inputs = demo.register_inputs(project, work / "data")
    straight = new_protocol(project, inputs)
    seconds = run(project, straight, 0.0)
    expected, tally, rng = comparable(straight), Tally(), random.Random(seed)
    while tally.kills < count:
        seconds = killed_until_done(project, new_protocol(project, inputs), rng, seconds, tally, count)
        print(f"{tally.kills} kills, a run takes {seconds:.0f} s", flush=True)
        last = project.getRuns(refresh=True)[-1]
        tally.different += comparable(last) != expected
        tally.temporary += len(temporary_files(Path(last._getExtraPath())))
    return tally


def new_protocol(project: Any, inputs: Any) -> Any:
    from localrefine_plugin.protocols import ProtLocalRefine
    protocol = project.newProtocol(ProtLocalRefine, **PARAMETERS)
    for name in ("Particles", "Volume", "Mask"):
        pointer = getattr(protocol, f"input{name}")
        pointer.set(inputs)
        pointer.setExtended(f"output{name}")
    project.saveProtocol(protocol)
    return protocol


def killed_until_done(project: Any, protocol: Any, rng: random.Random, seconds: float, tally: Tally,
                      count: int) -> float:
    """Returns the seconds an undisturbed run takes: those given, or less if the machine is less busy by now."""
    from pyworkflow.protocol import MODE_RESUME
    folder = Path(protocol._getExtraPath("run"))
    before: Dict[str, Any] = {}
    while True:
        enough = tally.kills >= count
        took = run(project, protocol, 0.0 if enough else rng.uniform(0.1, 0.8) * seconds)
        seconds = min(seconds, took) if protocol.isFinished() and not before else seconds
        now = finished_steps(folder) if folder.exists() else {}
        tally.repeated += sum(now.get(name) != moment for name, moment in before.items())
        before = now
        if protocol.isFinished():
            return seconds
        if protocol.isFailed():
            raise RuntimeError(protocol.getErrorMessage())
        tally.kills += 1
        tally.inside["random"] += 1
        tally.steps[len(now)] += 1
        protocol.runMode.set(MODE_RESUME)


def run(project: Any, protocol: Any, kill_after: float) -> float:
    """Launch, wait to the end or kill; wall seconds. A killed protocol is marked as Scipion's Stop does."""
    start = time.monotonic()
    project.launchProtocol(protocol, wait=False)
    while True:
        time.sleep(0.05)
        project._updateProtocol(protocol)
        if not protocol.isActive():
            return time.monotonic() - start
        if kill_after and time.monotonic() - start > kill_after:
            kill_tree(protocol.getPid())
            project._updateProtocol(protocol)
            if protocol.isActive():
                protocol.setAborted()
                project._storeProtocol(protocol)
            return time.monotonic() - start


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and all that descend from it."""
    for process in descendants(pid) + [pid]:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            pass


def descendants(pid: int) -> List[int]:
    import psutil
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def comparable(protocol: Any) -> Dict[str, bytes]:
    """The results of the engine in a protocol's folder, whose name is in the paths of its table."""
    own = os.path.basename(protocol._getPath()).encode()
    return {name: content.replace(own, b"") for name, content in
            results(Path(protocol._getExtraPath("run"))).items()}
