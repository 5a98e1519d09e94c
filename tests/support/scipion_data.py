"""Synthetic Scipion objects for the tests of the plugin: a project, particles, volume and mask.

Nothing here needs an import protocol: an EMProtocol is stored as finished and the sets hang on it.
"""
from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

import mrcfile
import numpy as np

PIXEL_SIZE = 3.0


def blob_map(box: int, seed: int = 1, blobs: int = 12) -> np.ndarray:
    """A positive map [z, y, x] of Gaussian blobs within 0.3 box of the centre."""
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[:box, :box, :box] - box // 2
    centres = rng.uniform(-0.22, 0.22, (blobs, 3)) * box
    density = np.zeros((box, box, box))
    for cx, cy, cz in centres:
        density += np.exp(-((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / (2 * 1.6 ** 2))
    return density.astype(np.float32)


def soft_ball(box: int, radius: float, edge: float, centre_px: Any = (0, 0, 0)) -> np.ndarray:
    """A ball with a cosine edge; ``centre_px`` xyz from the box centre."""
    z, y, x = np.mgrid[:box, :box, :box] - box // 2
    r = np.sqrt((x - centre_px[0]) ** 2 + (y - centre_px[1]) ** 2 + (z - centre_px[2]) ** 2)
    t = np.clip((r - radius) / edge, 0, 1)
    return (0.5 + 0.5 * np.cos(np.pi * t)).astype(np.float32)


def write_map(path: Path, data: np.ndarray, pixel_size: float = PIXEL_SIZE, stack: bool = False) -> str:
    with mrcfile.new(str(path), overwrite=True) as handle:
        handle.set_data(np.ascontiguousarray(data, dtype=np.float32))
        if stack:
            handle.set_image_stack()
        handle.voxel_size = pixel_size
    return str(path)


def random_transforms(n: int, seed: int, max_shift_px: float = 4.0) -> np.ndarray:
    """n ALIGN_PROJ matrices (n, 4, 4) with s_z = 0, built from first principles (not by the plugin)."""
    from scipy.spatial.transform import Rotation
    rng = np.random.default_rng(seed)
    a = Rotation.random(n, random_state=seed).as_matrix()
    m = np.tile(np.eye(4), (n, 1, 1))
    m[:, :3, :3] = a
    m[:, :2, 3] = -rng.uniform(-max_shift_px, max_shift_px, (n, 2))
    return np.linalg.inv(m)


def make_acquisition(voltage: float = 300.0, cs: float = 2.7, contrast: float = 0.1, optics: str = "") -> Any:
    from pwem.objects import Acquisition
    from pyworkflow.object import String
    acquisition = Acquisition(magnification=50000, voltage=voltage, sphericalAberration=cs, amplitudeContrast=contrast)
    if optics:
        acquisition.opticsGroupInfo = String(optics)
    return acquisition


def defocus(i: int) -> Dict[str, float]:
    """Of image i, Å and degrees."""
    return dict(defocusU=15000.0 + 10 * i, defocusV=14500.0 + 10 * i, defocusAngle=(7.0 * i) % 180)


def with_ctf(images: np.ndarray) -> np.ndarray:
    """Images (n, N, N) with the CTF of `defocus`."""
    from oracles import ctf_formula, full_frequencies
    box = images.shape[-1]
    kx, ky = full_frequencies(box)
    microscope = dict(voltage_kv=300.0, spherical_aberration_mm=2.7, amplitude_contrast=0.1)
    for i, image in enumerate(images):
        u, v, angle = defocus(i).values()
        c = ctf_formula(kx, ky, box, PIXEL_SIZE, defocus_u=u, defocus_v=v, defocus_angle=angle, **microscope)
        image[:] = np.fft.ifft2(np.fft.ifftshift(c) * np.fft.fft2(image)).real
    return images


def fill_particles(particles: Any, stack: str, transforms: np.ndarray, pixel_size: float = PIXEL_SIZE,
                   optics: str = "", subset: bool = True, disabled: Any = (),
                   acquisitions: Optional[Any] = None) -> Any:
    """Fill a SetOfParticles from a stack: image i of the stack has transform i."""
    from pwem.objects import Coordinate, CTFModel, Particle, Transform
    from pyworkflow.object import Float, Integer
    particles.setSamplingRate(pixel_size)
    particles.setAcquisition(make_acquisition(optics=optics))
    particles.setHasCTF(True)
    particles.setAlignmentProj()
    for i, matrix in enumerate(transforms):
        particle = Particle()
        particle.setLocation(i + 1, stack)
        particle.setSamplingRate(pixel_size)
        particle.setTransform(Transform(matrix=matrix))
        particle.setCTF(CTFModel(**defocus(i)))
        particle.setAcquisition(make_acquisition() if acquisitions is None else acquisitions[i])
        coordinate = Coordinate()
        coordinate.setPosition(100 + 40 * i, 200 + 40 * i)
        coordinate.setMicId(1 + i // 50)
        coordinate.setMicName(f"mic_{1 + i // 50}.mrc")
        particle.setCoordinate(coordinate)
        if subset:
            particle._rlnRandomSubset = Integer(1 + i % 2)
        particle._rlnMaxValueProbDistribution = Float(0.5 + 0.001 * i)
        if optics:
            particle._rlnOpticsGroup = Integer(1 + i % 2)
        if i in disabled:
            particle.setEnabled(False)
        particles.append(particle)
    particles.write()
    return particles


@contextmanager
def project_of_tests(name: str) -> Iterator[Any]:
    """A new project; Scipion works in its folder, so the folder of before is entered again at the end."""
    before = os.getcwd()
    yield new_project(name)
    os.chdir(before)


def launched(project: Any, protocol: Any) -> Any:
    """Run to the end; the protocol, brought up to date with what the child process stored."""
    project.launchProtocol(protocol, wait=True)
    project._updateProtocol(protocol)
    return protocol


def completed(project: Any, protocol: Any) -> Any:
    """The same of a protocol that must not fail."""
    launched(project, protocol)
    assert protocol.isFinished(), protocol.getErrorMessage()
    return protocol


def stored_run(project: Any, label: str, folder: Path, pixel_size: float, origin: Any) -> Any:
    """A local refinement of the project that is finished, and whose run folder is a copy of this one."""
    import shutil

    from localrefine_plugin.protocols import ProtLocalRefine
    protocol = project.newProtocol(ProtLocalRefine)
    protocol.setObjLabel(label)
    project.saveProtocol(protocol)
    protocol.makePathsAndClean()
    own = Path(protocol._getExtraPath("run"))
    shutil.copytree(folder, own, ignore=shutil.ignore_patterns("rigidity"))
    made = volume(str(own / "final" / "map.mrc"), pixel_size=pixel_size)
    shifted = made.getOrigin(force=True)
    shifted.setShifts(*origin)
    made.setOrigin(shifted)
    protocol._defineOutputs(outputVolume=made)
    protocol.setFinished()
    project._storeProtocol(protocol)
    return protocol


def new_project(name: str) -> Any:
    from pyworkflow.project import Manager
    manager = Manager()
    if manager.hasProject(name):
        manager.deleteProject(name)
    project = manager.createProject(name)
    os.chdir(project.path)
    return project


def store_inputs(project: Any, outputs: Dict[str, Any]) -> Any:
    """A finished protocol with these outputs."""
    from pwem.protocols import EMProtocol
    protocol = project.newProtocol(EMProtocol, objLabel="synthetic inputs")
    project.saveProtocol(protocol)
    protocol.makePathsAndClean()
    made = {name: make(protocol) for name, make in outputs.items()}
    protocol._defineOutputs(**made)
    protocol.setFinished()
    project._storeProtocol(protocol)
    return protocol


def volume(path: str, halves: Any = (), pixel_size: float = PIXEL_SIZE, mask: bool = False) -> Any:
    from pwem.objects import Volume, VolumeMask
    item = VolumeMask() if mask else Volume()
    item.setFileName(path)
    item.setSamplingRate(pixel_size)
    if halves:
        item.setHalfMaps(list(halves))
    return item


def simulated_inputs(project: Any, folder: Path, box: int = 32, n: int = 60, seed: int = 3, bad: Any = (),
                     noise_images: Any = ()) -> Any:
    """A finished protocol with outputParticles, outputVolume and outputMask.

    The images of the ``bad`` particles (from 0) are NaN, those of ``noise_images`` have the noise of the others only.
    """
    from scipy.ndimage import map_coordinates
    folder.mkdir(parents=True, exist_ok=True)
    density = blob_map(box, seed)
    rng = np.random.default_rng(seed)
    transforms = random_transforms(n, seed, max_shift_px=1.0)
    axis = np.arange(box) - box // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    points = np.stack([x, y, z]).reshape(3, -1)
    images = np.empty((n, box, box), dtype=np.float32)
    for i, t in enumerate(transforms):
        where = t[:3, :3] @ points + t[:3, 3:4] + box // 2
        images[i] = map_coordinates(density, where[::-1], order=1).reshape(box, box, box).sum(axis=0)
    images = with_ctf(images)
    noise_sd = images.std()
    images[list(noise_images)] = 0
    images += rng.normal(0, noise_sd, images.shape).astype(np.float32)
    images[list(bad)] = np.nan
    stack = write_map(folder / "particles.mrcs", images, stack=True)
    noise = 0.05 * density.std()
    halves = [write_map(folder / f"half_{h}.mrc", density + rng.normal(0, noise, density.shape)) for h in (1, 2)]
    path = write_map(folder / "map.mrc", density)
    mask = write_map(folder / "mask.mrc", soft_ball(box, 0.28 * box, 0.12 * box))
    return store_inputs(project, {
        "outputParticles": lambda p: fill_particles(p._createSetOfParticles(), stack, transforms),
        "outputVolume": lambda p: volume(path, halves),
        "outputMask": lambda p: volume(mask, mask=True)})
