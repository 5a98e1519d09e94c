"""CUDA sources executed on the CPU: the text of a .cu file compiled by g++ behind cuda_shim.h.

`Source` checks a launch as strictly as a GPU would punish it: every argument's type against the kernel's own
declaration, contiguity, limits of the grid. It runs in this process, or, for a sanitizer, in one of its own, where
every array is an allocation of exactly its size.
"""
from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import List

import numpy as np

SHIM = Path(__file__).parent / "cuda_shim.h"
POINTED = {"float2": np.complex64, "float": np.float32, "int": np.int32, "double": np.float64, "fixed64": np.uint64}
MAX_GRID, MAX_BLOCK = (2**31 - 1, 65535, 65535), 1024
MAIN = """
int main(int, char** names) {{
    FILE* in = fopen(names[1], "rb");
    unsigned header[5];
    if (fread(header, 4, 5, in) != 5) return 2;
    std::vector<void*> values;
    std::vector<long long> sizes;
    for (unsigned i = 0; i < header[4]; i++) {{
        long long size;
        if (fread(&size, 8, 1, in) != 1) return 2;
        values.push_back(malloc(size));
        sizes.push_back(size);
        if (size && fread(values[i], 1, size, in) != (size_t)size) return 2;
    }}
    launch_{name}(header[0], header[1], header[2], header[3], values.data());
    FILE* out = fopen(names[2], "wb");
    for (unsigned i = 0; i < header[4]; i++)
        fwrite(values[i], 1, sizes[i], out);
    return fclose(out);
}}
"""


@dataclass(frozen=True)
class Parameter:
    name: str
    pointer: bool
    constant: bool
    type: str


def parameters_of(code: str, name: str) -> List[Parameter]:
    """What a kernel declares; KeyError if the source has no such kernel."""
    found = re.search(r'extern "C" __global__ void ' + name + r"\((.*?)\)", code, re.DOTALL)
    if not found:
        raise KeyError(f"no kernel {name}")
    result = []
    for text in found.group(1).split(","):
        words = text.replace("__restrict__", " ").replace("*", " * ").split()
        kind = next(word for word in words if word in POINTED)
        result.append(Parameter(words[-1], "*" in words, "const" in words, kind))
    return result


def launcher(code: str, name: str) -> str:
    """A C function that unpacks an array of pointers and runs the kernel over the grid."""
    values = ", ".join(f"(({'const ' if p.constant else ''}{p.type}*)a[{i}])" if p.pointer else f"(*({p.type}*)a[{i}])"
                       for i, p in enumerate(parameters_of(code, name)))
    return (f'extern "C" void launch_{name}(unsigned gx, unsigned gy, unsigned block, int workers, void** a)\n'
            f"{{ over_grid({{gx, gy, 1}}, {{block, 1, 1}}, workers, [=]() {{ {name}({values}); }}); }}\n")


class Source:
    """The code of a .cu file, compiled when a kernel of it is first launched."""

    def __init__(self, code: str, folder: Path, sanitizer: str = "", workers: int = 1, backwards: bool = False):
        self.code, self.folder, self.sanitizer, self.workers = code, folder, sanitizer, workers
        self.order = ["-DBACKWARDS"] if backwards else []

    def launch(self, name: str, grid, block, arguments) -> None:
        """Check the arguments (numpy arrays and typed scalars) and run; arrays are changed in place."""
        declared = parameters_of(self.code, name)
        if len(arguments) != len(declared):
            raise TypeError(f"{name} takes {len(declared)} arguments, not {len(arguments)}")
        for parameter, value in zip(declared, arguments):
            check_argument(name, parameter, value)
        if not all(isinstance(n, int) for n in grid + block):
            raise TypeError(f"grid {grid} and block {block} must be int")
        if not all(0 < n <= most for n, most in zip(grid, MAX_GRID)) or not 0 < block[0] <= MAX_BLOCK or len(block) > 1:
            raise ValueError(f"grid {grid} and block {block} cannot be launched")
        grid = (grid + (1,))[:2]
        if self.sanitizer:
            self.launch_apart(name, grid, block[0], arguments)
        else:
            held = [np.ascontiguousarray(value) for value in arguments]
            addresses = (ctypes.c_void_p * len(held))(*(value.ctypes.data for value in held))
            getattr(self.library(name), f"launch_{name}")(*grid, block[0], self.workers, addresses)

    def compiled(self, name: str, text: str, *options: str) -> Path:
        """Path of the text compiled, once for each content."""
        code = "\n".join([SHIM.read_text(), self.code, launcher(self.code, name), text])
        path = self.folder / (hashlib.sha256((code + str(options)).encode()).hexdigest()[:24])
        if not path.exists():
            source = path.with_suffix(f".{os.getpid()}.cpp")  # processes side by side may compile the same
            source.write_text(code)
            made = source.with_suffix(".made")
            command = ["g++", "-std=c++14", "-O1", "-g", "-pthread", *options, "-o", str(made), str(source)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr)
            os.replace(made, path)
        return path

    def library(self, name: str) -> ctypes.CDLL:
        return ctypes.CDLL(str(self.compiled(name, "", "-shared", "-fPIC", *self.order)))

    def launch_apart(self, name: str, grid, block: int, arguments) -> None:
        """In a process of its own, under the sanitizer; RuntimeError with its report."""
        program = self.compiled(name, MAIN.format(name=name), f"-fsanitize={self.sanitizer}")
        given, returned = program.with_suffix(".in"), program.with_suffix(".out")
        with open(given, "wb") as handle:
            handle.write(struct.pack("<5I", *grid, block, self.workers, len(arguments)))
            for value in arguments:
                content = np.asarray(value).tobytes()
                handle.write(struct.pack("<q", len(content)) + content)
        fixed = [shutil.which("setarch"), "-R"] if self.sanitizer == "thread" else []  # TSan needs its address layout
        done = subprocess.run([*fixed, str(program), str(given), str(returned)], capture_output=True, text=True,
                              env={"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"})
        if done.returncode:
            raise RuntimeError(done.stderr or f"exit status {done.returncode}")
        content = returned.read_bytes()
        for value in arguments:
            size = np.asarray(value).nbytes
            if isinstance(value, np.ndarray):
                value[...] = np.frombuffer(content[:size], value.dtype).reshape(value.shape)
            content = content[size:]


def check_argument(name: str, parameter: Parameter, value) -> None:
    dtype = np.dtype(POINTED[parameter.type])
    if parameter.pointer:
        if not isinstance(value, np.ndarray) or value.dtype != dtype or not value.flags.c_contiguous:
            raise TypeError(f"{name}: {parameter.name} is not a contiguous array of {dtype}: {type(value).__name__} "
                            f"{getattr(value, 'dtype', '')}")
    elif type(value) is not dtype.type:
        raise TypeError(f"{name}: {parameter.name} is not a {dtype} but a {type(value).__name__}")
