"""Writes J2_particles.cs with cryosparc-tools 4.5.0; needs neither a licence nor cryoSPARC."""
import sys
from pathlib import Path

import numpy as np
from cryosparc.dataset import Dataset
from scipy.spatial.transform import Rotation

N, BOX, PIXEL_SIZE = 30, 16, 3.0
FIELDS = """blob/path:O blob/idx:u4 blob/shape:u4:2 blob/psize_A:f4 blob/sign:f4 blob/import_sig:u8
ctf/type:O ctf/exp_group_id:u4 ctf/accel_kv:f4 ctf/cs_mm:f4 ctf/amp_contrast:f4 ctf/df1_A:f4 ctf/df2_A:f4
ctf/df_angle_rad:f4 ctf/phase_shift_rad:f4 ctf/scale:f4 ctf/scale_const:f4 ctf/shift_A:f4:2 ctf/tilt_A:f4:2
ctf/trefoil_A:f4:2 ctf/tetra_A:f4:4 ctf/anisomag:f4:4 ctf/bfactor:f4
alignments3D/split:u4 alignments3D/shift:f4:2 alignments3D/pose:f4:3 alignments3D/psize_A:f4 alignments3D/error:f4
alignments3D/error_min:f4 alignments3D/resid_pow:f4 alignments3D/slice_pow:f4 alignments3D/image_pow:f4
alignments3D/cross_cor:f4 alignments3D/alpha:f4 alignments3D/alpha_min:f4 alignments3D/weight:f4
alignments3D/pose_ess:f4 alignments3D/shift_ess:f4 alignments3D/class_posterior:f4 alignments3D/class:u4
alignments3D/class_ess:f4
location/micrograph_uid:u8 location/exp_group_id:u4 location/micrograph_path:O location/micrograph_shape:u4:2
location/center_x_frac:f4 location/center_y_frac:f4"""


def field(text):
    name, kind, *length = text.split(":")
    return (name, kind, (int(length[0]),)) if length else (name, kind)


rng = np.random.default_rng(7)
i = np.arange(N)
values = {
    "uid": i + 1 + 10 ** 9, "blob/path": np.array(["J1/images/particles.mrc"] * N, dtype=object), "blob/idx": i,
    "blob/shape": np.full((N, 2), BOX), "blob/psize_A": PIXEL_SIZE, "blob/sign": -1,
    "ctf/type": np.array(["spline"] * N, dtype=object), "ctf/exp_group_id": 1 + i // 15, "ctf/accel_kv": 300,
    "ctf/cs_mm": 2.7, "ctf/amp_contrast": 0.1, "ctf/df1_A": 15000 + 100 * i, "ctf/df2_A": 14500 + 100 * i,
    "ctf/df_angle_rad": np.deg2rad(5 * i), "ctf/phase_shift_rad": 0, "ctf/scale": 1,
    "ctf/tilt_A": np.stack([np.where(i < 15, 2000.0, 0), np.where(i < 15, 0, -1000.0)], axis=1), "ctf/anisomag": 0,
    "alignments3D/split": rng.integers(0, 2, N), "alignments3D/shift": rng.uniform(-3, 3, (N, 2)),
    "alignments3D/pose": Rotation.random(N, random_state=7).as_rotvec(), "alignments3D/psize_A": PIXEL_SIZE,
    "alignments3D/class_posterior": 1, "alignments3D/alpha": 1, "alignments3D/weight": 1,
    "location/micrograph_path": np.array([f"J1/mic_{k // 10}.mrc" for k in i], dtype=object),
    "location/micrograph_shape": np.full((N, 2), 4096),
    "location/center_x_frac": rng.uniform(.1, .9, N), "location/center_y_frac": rng.uniform(.1, .9, N)}
dataset = Dataset.allocate(N, [field(text) for text in FIELDS.split()])
for name, value in values.items():
    dataset[name] = value
dataset.save(str(Path(sys.argv[1]) / "J2_particles.cs"))
