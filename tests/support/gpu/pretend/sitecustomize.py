"""With this folder in PYTHONPATH a process of its own finds GPUs: a driver made up, and the stand-in as CuPy.

PRETENDED_GPUS: how many, 2 if it is not set. FULL_GPU="cuda:1 20": the memory of this one is full with more images.
"""
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from gpu.driver import Driver  # noqa: E402
from gpu.stand_in import beside, make_cupy  # noqa: E402

from localrefine_plugin.engine.kernels import device  # noqa: E402

cupy = make_cupy(Path(os.environ["KERNELS_OF_STAND_IN"]))
sys.modules.update(cupy=cupy, **beside(cupy))
device.load_driver = lambda: Driver(gpus=int(os.environ.get("PRETENDED_GPUS", "2")))

if "FULL_GPU" in os.environ:
    from localrefine_plugin.engine.align.half_alignment import HalfAlignment

    word, most = os.environ["FULL_GPU"].split()
    add = HalfAlignment.add

    def add_some(self, index):
        if self.device.word == word and len(index) > int(most):
            print(f"{word} is full with {len(index)} images", file=sys.stderr)
            raise cupy.cuda.memory.OutOfMemoryError("Out of memory")
        add(self, index)
    HalfAlignment.add = add_some
