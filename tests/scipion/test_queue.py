"""Through Scipion's queue: SLURM, started here, runs the protocol or its steps, with the bits of a plain run."""
from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import require_mpi, require_program
from pyworkflow.object import Pointer
from pyworkflow.protocol.constants import MODE_RESUME
from scipion_data import new_project, simulated_inputs, soft_ball, store_inputs, volume, write_map

from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.protocols import ProtLocalRefine

ROOT = Path(__file__).resolve().parents[2]
HOSTS = """[localhost]
PARALLEL_COMMAND = mpirun --oversubscribe -np %_(JOB_NODES)d %_(COMMAND)s
NAME = SLURM
MANDATORY = 0
SUBMIT_COMMAND = sbatch %_(JOB_SCRIPT)s
CANCEL_COMMAND = scancel %_(JOB_ID)s
CHECK_COMMAND = squeue -h -j %_(JOB_ID)s -o %%T
JOB_DONE_REGEX = COMPLETED|FAILED|CANCELLED
SUBMIT_TEMPLATE = #!/bin/bash
	##SBATCH --job-name=%_(JOB_NAME)s
	##SBATCH --partition=%_(JOB_QUEUE)s
	##SBATCH --ntasks=%_(JOB_NODES)d
	##SBATCH --cpus-per-task=1
	##SBATCH --output=%_(JOB_LOGS)s.out
	##SBATCH --error=%_(JOB_LOGS)s.err
	%_(JOB_COMMAND)s
QUEUES = {"debug": []}
QUEUES_DEFAULT = {}
"""
SLURM = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=2
JobCompType=jobcomp/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores}
PartitionName=debug Nodes=ALL Default=YES State=UP OverSubscribe=FORCE:4
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def waited_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.2)


def stop(folder):
    for name in ("slurmd", "slurmctld", "munged"):
        path = folder / f"{name}.pid"
        if path.exists():
            subprocess.run(["kill", path.read_text().strip()], stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A cluster of this machine alone, as root; its own munge."""
    require_mpi()
    for program in ("slurmctld", "slurmd", "sbatch", "munged"):
        require_program(program)
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons need root here")
    folder = Path(tmp_path_factory.mktemp("slurm"))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    munged = ["munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
              f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"]
    config = folder / "slurm.conf"
    config.write_text(SLURM.format(host=socket.gethostname().split(".")[0], ports=free_ports(2), folder=folder,
                                   cores=os.cpu_count()))
    variables = dict(SLURM_CONF=str(config), OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                     PYTHONPATH=str(ROOT))
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        subprocess.run(munged, check=True)
        subprocess.run(["slurmctld", "-f", str(config)], check=True)
        subprocess.run(["slurmd", "-f", str(config)], check=True)
        waited_for(lambda: "idle" in subprocess.run(["sinfo", "-h", "-o", "%T"], stdout=subprocess.PIPE,
                                                    universal_newlines=True).stdout, 30, "SLURM does not start")
        yield folder
    finally:
        stop(folder)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def project(slurm, tmp_path_factory):
    from pyworkflow import Config
    Config.getDomain().registerPlugin("localrefine_plugin")
    before = os.getcwd()
    made = new_project("test_queue")
    hosts = slurm / "hosts.conf"
    hosts.write_text(HOSTS)
    made._loadHosts(str(hosts))
    folder = tmp_path_factory.mktemp("data")
    inputs = simulated_inputs(made, folder, n=120)
    other = write_map(folder / "other.mrc", soft_ball(32, 5, 4, (7, 0, 0)))
    masks = store_inputs(made, {"outputMask": lambda p: volume(other, mask=True)})
    yield SimpleNamespace(project=made, inputs=inputs, masks=masks)
    os.chdir(before)


def launched(project, mpi, queue="", more=False):
    """A protocol, launched: "protocol" or "steps" through the queue, with one mask or ``more``."""
    protocol = project.project.newProtocol(ProtLocalRefine, maxIterations=1, numberOfThreads=1, numberOfMpi=mpi,
                                           useGpu=False)
    for name, output in (("inputParticles", "outputParticles"), ("inputVolume", "outputVolume"),
                         ("inputMask", "outputMask")):
        pointer = getattr(protocol, name)
        pointer.set(project.inputs)
        pointer.setExtended(output)
    if more:
        protocol.moreMasks.set([Pointer(project.masks, extended="outputMask")])
        protocol.subtractBodies.set(False)  # then each body has the bits of a run of its own
    if queue:
        protocol._useQueue.set(True)
        protocol.setQueueParams(("debug", {"QUEUE_FOR_JOBS": "Y" if queue == "steps" else "N"}))
    project.project.launchProtocol(protocol)
    return protocol


def ended(project, protocol, seconds=240):
    def inactive():
        project.project._updateProtocol(protocol, checkPid=True)
        return not protocol.isActive()
    waited_for(inactive, seconds, f"still {protocol.getStatus()}")
    return protocol


def maps(protocol):
    """Of the first mask."""
    run = protocol.run_folders()[0]
    return [run.final(name).read_bytes() for name in ("map.mrc", "half_map_1.mrc", "half_map_2.mrc")]


@pytest.fixture(scope="module")
def plain(project):
    protocol = ended(project, launched(project, 1))
    assert protocol.isFinished(), protocol.getErrorMessage()
    return maps(protocol)


@pytest.mark.parametrize("queue", ("", "protocol", "steps"))
def test_two_mpi_processes_have_the_bits_of_a_plain_run(project, plain, queue):
    protocol = ended(project, launched(project, 2, queue))
    assert protocol.isFinished(), protocol.getErrorMessage()
    assert maps(protocol) == plain
    assert read_json(protocol._run_folder().half_done(1, 2))["processes"] == 2


def test_several_masks_go_through_the_queue_in_one_job_of_two_mpi_processes(project, plain):
    protocol = ended(project, launched(project, 2, "steps", more=True))
    assert protocol.isFinished(), protocol.getErrorMessage()
    assert maps(protocol) == plain  # each body has the bits of a run of its own
    assert [read_json(run.half_done(1, 2))["processes"] for run in protocol.run_folders()] == [2, 2]
    assert protocol.outputComposite.getDim() == (32, 32, 32)


def test_a_job_that_slurm_kills_has_failed_and_continue_finishes_it(project, plain):
    protocol = launched(project, 2, "steps")
    claims = protocol._run_folder().iteration(1)
    waited_for(lambda: list(claims.glob(".half_1_claims*")), 200, "the alignment does not begin")
    jobs = subprocess.run(["squeue", "-h", "-o", "%i"], stdout=subprocess.PIPE, universal_newlines=True).stdout.split()
    subprocess.run(["scancel", "--signal=KILL", "--full", *jobs], check=True)
    ended(project, protocol)
    assert protocol.isFailed()
    # the ranks that SLURM left a moment found that mpirun was gone
    assert re.search("queue may have stopped it|mpirun, or the queue has ended it", protocol.getErrorMessage())
    protocol.runMode.set(MODE_RESUME)
    project.project.launchProtocol(protocol)
    ended(project, protocol)
    assert protocol.isFinished(), protocol.getErrorMessage()
    assert maps(protocol) == plain
