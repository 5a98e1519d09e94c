"""A project of RELION in which a refinement and a mask are done."""
from __future__ import annotations

import mrcfile
import numpy as np
from experiments import experiment
from relion_files import write_map, write_star

BOX, PIXEL, COUNT = 40, 4.0, 120


def small_experiment():
    return experiment(COUNT, box=BOX, pixel_size=PIXEL, noise=0.5, seed=3)


def write_project(folder, e):
    """The files of Extract, Refine3D and MaskCreate jobs, and an empty pipeline."""
    for name in ("Extract", "Refine3D/job001", "MaskCreate/job002"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(5)
    truth = e.phantom.density(e.box)
    for half in (1, 2):
        write_map(folder / f"Refine3D/job001/run_half{half}_class001_unfil.mrc",
                  truth + 0.05 * truth.std() * rng.standard_normal(truth.shape), PIXEL)
        with mrcfile.new(str(folder / f"Extract/half_{half}.mrcs")) as mrc:
            mrc.set_data(e.images[e.particles.half_set == half].astype(np.float32))
            mrc.set_image_stack()
            mrc.voxel_size = PIXEL
    write_map(folder / "MaskCreate/job002/mask.mrc", e.mask, PIXEL)
    write_star(folder / "Refine3D/job001/run_data.star", e.particles,
               {1: "Extract/half_1.mrcs", 2: "Extract/half_2.mrcs"})
    (folder / "default_pipeline.star").write_text(
        "\n# version 30001\n\ndata_pipeline_general\n\n_rlnPipeLineJobCounter 3\n\n")
    return folder
