"""A stand-in of cryoSPARC behind the client of cryosparc-tools 4 or 5, at the level of files.

A project is a folder with the folders of its jobs; ``job.json`` holds what the server knows of a job. What the client's
documentation says is refused is refused here. Every call is bound to the signature of the real class, if the installed
cryosparc-tools is of the version that is played. Written from the docstrings and the change log of 4.5.0 and 5.0.3.
"""
from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from cryosparc import __version__
from cryosparc.dataset import Dataset

BLOB = [("path", "O"), ("shape", "<u4", (3,)), ("psize_A", "<f4")]
ALIGNMENTS = [("split", "<u4"), ("shift", "<f4", (2,)), ("pose", "<f4", (3,)), ("psize_A", "<f4"), ("alpha", "<f4"),
              ("cross_cor", "<f4")]
FIELDS = {"blob": BLOB, "alignments3D": ALIGNMENTS}  # of an output that is allocated


def real_class(kind, version):
    """The class of cryosparc-tools that is played; None where another version is installed."""
    if not __version__.startswith(f"{version}."):
        return None
    if version == 4:
        from cryosparc import job, project
        return {"job": job.Job, "external": job.ExternalJob, "project": project.Project}[kind]
    from cryosparc.controllers import job, project
    return {"job": job.JobController, "external": job.ExternalJobController, "project": project.ProjectController}[kind]


class Checked:
    """What is called must be there in the real class, and be called as it can be."""

    def __init__(self, target, kind, version):
        self._target, self._real = target, real_class(kind, version)

    def __getattr__(self, name):
        value = getattr(self._target, name)
        if self._real is None or name in ("uid",):
            return value
        real = inspect.getattr_static(self._real, name)
        if not callable(value) or isinstance(real, property):
            return value

        def call(*arguments, **named):
            inspect.signature(real).bind(None, *arguments, **named)
            return value(*arguments, **named)
        return call


class Server:
    """``project(uid)`` lies in ``root``; ``client`` takes the place of cryosparc.tools.CryoSPARC."""

    def __init__(self, root, version):
        self.root, self.version, self.logins = Path(root), version, []

    def client(self, **where):
        self.logins.append(where)
        return SimpleNamespace(find_project=self.find_project)

    def find_project(self, uid):
        if not (self.root / uid).is_dir():
            raise RuntimeError(f"project {uid} does not exist")
        return Checked((Project4 if self.version == 4 else Project5)(self, uid), "project", self.version)

    def job(self, project, uid):
        kind = "external" if read(self.root / project / uid)["type"] == "snowflake" else "job"
        return Checked((Job4 if self.version == 4 else Job5)(self, project, uid), kind, self.version)


def read(folder):
    return json.loads((folder / "job.json").read_text())


def add_job(folder, kind, outputs):
    """A finished job. outputs : name → (type, {slot: data type}, files with the records in the job's folder)."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {name: dict(type=group, slots=slots, files=files, passthrough=None)
             for name, (group, slots, files) in outputs.items()}
    (folder / "job.json").write_text(json.dumps(dict(type=kind, status="completed", outputs=known, inputs={}, log=[])))


class Project:
    def __init__(self, server, uid):
        self.server, self.uid, self._dir = server, uid, server.root / uid

    def find_workspace(self, workspace_uid):
        if workspace_uid != "W1":
            raise RuntimeError(f"workspace {workspace_uid} does not exist")

    def find_job(self, job_uid):
        if not (self._dir / job_uid).is_dir():
            raise RuntimeError(f"job {job_uid} does not exist")
        return self.server.job(self.uid, job_uid)

    def create_external_job(self, workspace_uid, title=None, desc=None):
        uid = f"J{1 + max(int(path.name[1:]) for path in self._dir.glob('J*'))}"
        (self._dir / uid).mkdir()
        (self._dir / uid / "job.json").write_text(json.dumps(dict(
            type="snowflake", status="building", workspace=workspace_uid, title=title, outputs={}, inputs={}, log=[])))
        return self.server.job(self.uid, uid)


class Project4(Project):
    def dir(self):
        return self._dir


class Project5(Project):
    @property
    def dir(self):
        return self._dir


class Job:
    def __init__(self, server, project, uid):
        self.server, self.uid, self._root = server, uid, server.root / project
        self._folder = self._root / uid
        self.refresh()

    def refresh(self):
        self._known = read(self._folder)
        return self

    @property
    def status(self):
        return self._known["status"]

    def _write(self, **changes):
        self._known = {**read(self._folder), **changes}
        (self._folder / "job.json").write_text(json.dumps(self._known))

    # inputs

    def connect(self, target_input, source_job_uid, source_output, *, slots=(), title="", desc=""):
        source = read(self._root / source_job_uid)["outputs"].get(source_output)
        if source is None:
            raise ValueError(f"{source_job_uid} has no output {source_output}")
        if not slots:
            raise ValueError("slots must be given")
        wrong = [s for s in map(self._slot, slots) if source["slots"].get(s[0]) != s[1]]
        if wrong:
            raise ValueError(f"{source_job_uid}.{source_output} has no slots {wrong}")
        self._write(inputs={**self._known["inputs"], target_input: [source_job_uid, source_output]})
        return True

    def _slot(self, spec):
        name, other = ("prefix", "name") if self.server.version == 4 else ("name", "prefix")
        if other in spec:
            raise ValueError(f"a slot with the key {other}")
        return spec[name], spec["dtype"]

    def load_input(self, name, slots=()):
        uid, output = self._known["inputs"][name]
        files = read(self._root / uid)["outputs"][output]["files"]
        return Dataset.innerjoin(*(Dataset.load(str(self._root / uid / file)) for file in files))

    # outputs

    def add_output(self, type, name=None, slots=(), passthrough=None, title=None, *, alloc=None):
        if self.status == "completed":
            raise ValueError("the job is completed")
        if not re.fullmatch("[A-Za-z][0-9A-Za-z_]*", name) or not slots:
            raise ValueError("a name of letters and a slot are needed")
        if passthrough is not None and passthrough not in self._known["inputs"]:
            raise ValueError(f"there is no input {passthrough}")
        known = dict(type=type, slots=dict(map(self._slot, slots)), files=[], passthrough=passthrough)
        self._write(outputs={**self._known["outputs"], name: known})
        return name

    def alloc_output(self, name, alloc=0):
        fields = [(f"{slot}/{field[0]}", *field[1:]) for slot, dtype in self._known["outputs"][name]["slots"].items()
                  for field in FIELDS[dtype]]
        if isinstance(alloc, int):
            return Dataset.allocate(alloc, fields)
        return Dataset({"uid": alloc["uid"]}).add_fields(fields)

    def save_output(self, name, dataset):
        if self.status != "running":
            raise ValueError(f"the job is {self.status}")
        output = self._known["outputs"][name]
        if {field.split("/")[0] for field in dataset.fields() if field != "uid"} != set(output["slots"]):
            raise ValueError("the fields are not those of the slots")
        for field in (f for f in dataset.fields() if f.endswith("/path")):
            if not all((self._root / path).is_file() for path in dataset[field]):
                raise ValueError(f"{field} names no file of the project")
        dataset.save(str(self._folder / f"{name}.cs"))
        self._write(outputs={**self._known["outputs"], name: dict(output, files=[f"{name}.cs"])})

    def upload(self, target_path, source, *, overwrite=False):
        target = self._folder / target_path
        if target.exists() and not overwrite:
            raise ValueError(f"{target_path} exists")
        target.write_bytes(Path(source).read_bytes())

    # log and state

    def log(self, text, level="text"):
        self._write(log=[*self._known["log"], [level, text]])

    def log_plot(self, figure, text, formats=("png", "pdf")):
        name = f"plot_{len(self._known['log'])}.png"
        figure.savefig(self._folder / name)
        self._write(log=[*self._known["log"], ["plot", text, name]])

    def start(self, status="waiting"):
        if self.status != "building":
            raise ValueError(f"the job is {self.status}")
        self._write(status=status)


class Job4(Job):
    @property
    def doc(self):
        outputs = self._known["outputs"]
        return dict(output_result_groups=[dict(name=n, type=o["type"]) for n, o in outputs.items()],
                    output_results=[dict(group_name=n, name=slot, type=f"{o['type']}.{dtype}")
                                    for n, o in outputs.items() for slot, dtype in o["slots"].items()])

    def stop(self, error=False):
        self._write(status="failed" if error else "completed")


class Job5(Job):
    model = None

    @property
    def outputs(self):
        return {name: SimpleNamespace(type=o["type"], results=[SimpleNamespace(name=slot, dtype=dtype)
                                                               for slot, dtype in o["slots"].items()])
                for name, o in self._known["outputs"].items()}

    def stop(self, error=""):
        if error:
            self.log(error, "error")
        self._write(status="failed" if error else "completed")


def dataset_of(folder, records):
    """Save an array with the fields of a row each as cryosparc-tools does."""
    Dataset({"uid": records["uid"], **{name: text(records[name]) for name in records.dtype.names if name != "uid"}}
            ).save(str(folder))


def text(values):
    return np.array([value.decode() for value in values], dtype=object) if values.dtype.kind == "S" else values
