"""Distribution metadata of scipion-em-localrefine. The version lives in localrefine_plugin/__init__.py."""
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def version() -> str:
    """The string assigned to __version__, read without importing the package."""
    text = (HERE / "localrefine_plugin" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    if found is None:
        raise RuntimeError("localrefine_plugin/__init__.py does not assign __version__")
    return found.group(1)


def cupy(cuda: int) -> str:
    """CuPy 14 needs numpy 2. Beside scipion-pyworkflow, which does not allow it, pip takes 13.6."""
    return f"cupy-cuda{cuda}x>=12.3,<15"


setup(
    name="scipion-em-localrefine",
    version=version(),
    description="Local refinement of a sub-volume in single-particle cryo-EM, as a Scipion plugin",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The scipion-em-localrefine developers",
    license="GPL-3.0-or-later",
    keywords="cryo-EM single-particle local-refinement scipion scipion-3.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Bio-Informatics",
    ],
    python_requires=">=3.8",
    packages=find_packages(include=["localrefine_plugin", "localrefine_plugin.*"]),
    package_data={"localrefine_plugin": ["protocols.conf", "*.png"], "": ["*.cu", "*.cuh", "*.h", "*.template"]},
    # Lower bounds only where an older one is known not to work: pyworkflow and pwem pin the exact versions.
    install_requires=[
        "scipion-pyworkflow>=3.9",
        "scipion-em>=3.9",
        "numpy",
        "scipy",
        "mrcfile",
        "emtable>=0.0.14",
        "numba>=0.57",
    ],
    extras_require={
        "cuda11": [cupy(11)],
        "cuda12": [cupy(12)],
        "cuda13": [cupy(13)],
        "mpi": ["mpi4py>=3.1"],
        # An external job of cryoSPARC; it must be of the version of the server.
        "cryosparc": ["cryosparc-tools>=4.4", "matplotlib"],
        # The plugins whose converters make the sets of the tests, in the versions of docs/reference/compatibility.md.
        # scipion-app: scipion-em-xmipp imports it without saying so.
        "test": ["pytest>=8", "hypothesis", "coverage", "ruff", "mypy", "import-linter>=2",
                 "scipion-em-relion==5.0.2", "scipion-em-cryosparc2==5.0.1", "scipion-em-xmipp==29.0.1",
                 "scipion-em-eman2==3.7.0", "scipion-app", "cryosparc-tools", "mpi4py>=3.1",
                 # the CUDA compiler: the kernels are compiled for every architecture, without a GPU
                 "nvidia-cuda-nvrtc-cu12==12.9.*; platform_system == 'Linux'"],
    },
    entry_points={"pyworkflow.plugin": "localrefine_plugin = localrefine_plugin",
                  "console_scripts": ["localrefine-relion = localrefine_plugin.doors.relion:main",
                                      "localrefine-cryosparc = localrefine_plugin.doors.cryosparc:main"],
                  "ccpem_pipeliner.jobs": ["localrefine.refine3d.local = localrefine_plugin.doors.ccpem:LocalRefine"]},
)
