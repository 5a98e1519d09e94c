"""Particles of cryoSPARC (.cs) for tests."""
from __future__ import annotations

import mrcfile
import numpy as np
from scipy.spatial.transform import Rotation


def save(path, records):
    with open(path, "wb") as handle:
        np.save(handle, records, allow_pickle=False)


def some_fields(records, names):
    part = np.zeros(len(records), [(name, *records.dtype.descr[records.dtype.names.index(name)][1:]) for name in names])
    for name in names:
        part[name] = records[name]
    return part


def cs_of_experiment(path, e):
    """The particles of an experiment as cryoSPARC would hold them; one stack for both half-sets."""
    p = e.particles
    fields = [("uid", "<u8"), ("blob/path", "S40"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)),
              ("blob/psize_A", "<f4"), ("ctf/exp_group_id", "<u4"), ("ctf/accel_kv", "<f4"), ("ctf/cs_mm", "<f4"),
              ("ctf/amp_contrast", "<f4"), ("ctf/df1_A", "<f4"), ("ctf/df2_A", "<f4"), ("ctf/df_angle_rad", "<f4"),
              ("ctf/phase_shift_rad", "<f4"), ("alignments3D/split", "<u4"), ("alignments3D/shift", "<f4", (2,)),
              ("alignments3D/pose", "<f4", (3,)), ("alignments3D/psize_A", "<f4"), ("alignments3D/alpha", "<f4")]
    records, optics = np.zeros(len(p), fields), p.optics[0]
    records["uid"] = np.random.default_rng(2).choice(2 ** 62, len(p), replace=False)
    records["blob/path"], records["blob/idx"], records["blob/shape"] = b">all.mrc", np.arange(len(p)), e.box
    records["blob/psize_A"] = records["alignments3D/psize_A"] = p.pixel_size
    records["ctf/accel_kv"], records["ctf/cs_mm"] = optics.voltage_kv, optics.spherical_aberration_mm
    records["ctf/amp_contrast"], records["ctf/df1_A"] = optics.amplitude_contrast, p.defocus_u
    records["ctf/df2_A"], records["ctf/df_angle_rad"] = p.defocus_v, np.deg2rad(p.defocus_angle)
    records["ctf/phase_shift_rad"] = np.deg2rad(p.phase_shift)
    records["alignments3D/split"], records["alignments3D/shift"] = p.half_set - 1, -p.shift_px
    records["alignments3D/pose"] = Rotation.from_matrix(p.rotation).inv().as_rotvec()
    records["alignments3D/alpha"] = 1.25
    save(path, records)
    with mrcfile.new(str(path.parent / "all.mrc")) as mrc:
        mrc.set_data(e.images.astype(np.float32))
        mrc.set_image_stack()
        mrc.voxel_size = p.pixel_size
    return records
