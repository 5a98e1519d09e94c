"""With this folder in PYTHONPATH a process of its own finds two GPUs: a driver made up, and the stand-in as CuPy."""
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from gpu.driver import Driver  # noqa: E402
from gpu.stand_in import beside, make_cupy  # noqa: E402

from localrefine_plugin.engine.kernels import device  # noqa: E402

cupy = make_cupy(Path(os.environ["KERNELS_OF_STAND_IN"]))
sys.modules.update(cupy=cupy, **beside(cupy))
device.load_driver = lambda: Driver(gpus=2)
