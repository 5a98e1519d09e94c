"""Which GPUs, threads and MPI processes of the form reach the engine."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from pyworkflow.protocol.constants import VOID_GPU
from pyworkflow.protocol.executor import QueueStepExecutor, StepExecutor
from pyworkflow.protocol.hosts import HostConfig
from pyworkflow.protocol.protocol import anonimizeGPUs

from localrefine_plugin.engine.io.run_folder import RunFolder
from localrefine_plugin.protocols import ProtLocalRefine


def protocol(gpus="0", use=True, executor=None):
    made = ProtLocalRefine(useGpu=use, gpuList=gpus)
    made._stepsExecutor = executor
    return made


@pytest.mark.parametrize("gpus, device", [
    ("0", "cuda:0"), ("3", "cuda:3"), ("2 0", "cuda:2,cuda:0"), ("1-3", "cuda:1,cuda:2,cuda:3"), ("1 1", "cuda:1"),
    (f"{VOID_GPU} 2", "cuda:2")])
def test_the_list_of_the_form_is_respected(gpus, device):
    made = protocol(gpus)
    made._stepsExecutor = StepExecutor(None, gpuList=made.getGpuList())
    assert made._device() == device
    assert protocol(gpus)._device() == device
    assert protocol(gpus, use=False)._device() == "cpu"


def test_in_a_queue_gpus_are_counted_from_zero():
    """What the form calls 4 and 6 is what the queue gives, which the process sees as 0 and 1."""
    made = protocol("4 6")
    made._stepsExecutor = StepExecutor(None, gpuList=anonimizeGPUs(made.getGpuList()))
    assert made._device() == "cuda:0,cuda:1"


def test_each_step_in_a_queue_has_its_slot(monkeypatch):
    executor = QueueStepExecutor(None, {}, 1, gpuList=[5, 7])
    monkeypatch.setattr(executor, "getCurrentStepThread", lambda: SimpleNamespace(needsGPU=lambda: True, thId=9))
    assert protocol("5 7", executor=executor)._device() == "cuda:0,cuda:1"


@pytest.mark.parametrize("gpus, use, mpi, halves, device", [
    ("0 1 2", True, 1, "both", "cuda:0,cuda:1,cuda:2"), ("1", True, 1, "1", "cuda:1"), ("0", False, 1, "1", "cpu"),
    ("0", False, 3, "both", "cpu"), ("0 1", True, 4, "both", "cuda:0,cuda:1")])
def test_several_processes_align_both_halves_in_one_step(monkeypatch, tmp_path, gpus, use, mpi, halves, device):
    """Only the alignment is started with MPI."""
    asked, folder = [], RunFolder(tmp_path)
    folder.iteration(1).mkdir()
    for done in (folder.half_done(1, 1), folder.iteration_done(1)):
        done.touch()
    made = protocol(gpus, use)
    made.numberOfMpi.set(mpi)
    monkeypatch.setattr(RunFolder, "stopped_before", lambda self, k: False)
    monkeypatch.setattr(RunFolder, "iterations_done", lambda self: 0)
    monkeypatch.setattr(made, "_run_folder", lambda: folder)
    monkeypatch.setattr(made, "_tell_progress", lambda: None)
    monkeypatch.setattr(made, "runJob", lambda program, words, numberOfMpi: asked.append((words.split(), numberOfMpi)))
    made.alignStep(1, 1, "token")
    made.mergeStep(1, "token")
    (align, ranks), (merge, one) = asked
    assert (align[2], align[7], align[9], ranks) == ("align", halves, device, mpi) and (merge[2], one) == ("merge", 1)


def test_a_job_that_ended_early_is_a_failure_though_the_queue_tells_of_none(monkeypatch, tmp_path):
    made = protocol(use=False)
    (tmp_path / "iter_001").mkdir()
    monkeypatch.setattr(made, "_run_folder", lambda: RunFolder(tmp_path))
    monkeypatch.setattr(RunFolder, "stopped_before", lambda self, k: False)
    monkeypatch.setattr(made, "runJob", lambda *words, numberOfMpi: None)
    with pytest.raises(RuntimeError, match="'align' ended before its work.*queue may have stopped it.*Continue"):
        made.alignStep(1, 1, "token")


def test_the_hosts_file_of_the_docs_is_one_that_scipion_reads(tmp_path):
    page = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "use-many-gpus-and-machines.md"
    hosts = tmp_path / "hosts.conf"
    hosts.write_text(page.read_text(encoding="utf-8").split("```ini\n")[1].split("```")[0])
    host = HostConfig.load(str(hosts))["localhost"]
    known = dict(JOB_NAME="7", JOB_QUEUE="gpu", JOB_NODES=32, JOB_THREADS=8, GPU_COUNT=8, JOB_LOGS="log", JOB_ID=3,
                 JOB_COMMAND="scipion run", COMMAND="engine", **host.getQueuesDefault())
    known.update({name: value for name, value, *_ in host.getQueueSystem().queues["gpu"]})
    script = host.getSubmitTemplate() % known
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=7\n")
    for asked in ("ntasks=32", "gres=gpu:8", "ntasks-per-node=4", "cpus-per-task=8", "time=24:00:00"):
        assert f"#SBATCH --{asked}\n" in script
    assert host.mpiCommand.get() % known == "mpirun -np 32 --map-by slot engine"
    assert host.getCheckCommand() % known == "squeue -h -j 3 -o %T"
    assert known["QUEUE_FOR_JOBS"] == "N"
