"""A stand-in for CuPy made of numpy arrays that refuse what CuPy refuses.

It offers only names and arguments that cupy_names.json recorded from a real CuPy; its arrays mix with numpy's in no
operation; memory not written holds NaN; kernels run through cuda_on_cpu. It counts what costs time on a GPU: waits of
the host for the device, and bytes moved.
"""
from __future__ import annotations

import importlib.machinery
import json
import operator
import types
from pathlib import Path
from typing import Any, Dict

import numpy as np
import scipy.fft
import scipy.ndimage

from gpu.cuda_on_cpu import Source
from gpu.streams import Ledger, Pool, cuda_namespace

RECORD, OLDER = (json.loads((Path(__file__).parent / f"cupy_{name}.json").read_text()) for name in ("names", "older"))
WAITING_FUNCTIONS = {"nonzero", "flatnonzero", "argwhere", "unique", "asnumpy", "bincount", "array_equal", "allclose",
                     "label"}
VIEWS = {"get", "reshape", "view", "swapaxes", "transpose", "ravel"}  # which move nothing on the GPU
WAITING_METHODS = {"get", "item", "tolist", "nonzero", "tobytes"}
SCALARS = (bool, int, float, complex, np.generic)
BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
FROM_SCIPY = {"fft", "ifft", "fft2", "ifft2", "fftn", "ifftn", "rfft", "irfft", "rfft2", "irfft2", "rfftn", "irfftn"}


def in_both(kind: str, where: str) -> Dict[str, str]:
    """Names with their arguments in the newest and in the oldest CuPy that setup.py allows; the fewer arguments."""
    names = {**RECORD[kind][where], **OLDER[kind].get(where, {})}
    return {name: declared for name, declared in names.items() if declared is not None and name in RECORD[kind][where]}


FUNCTIONS = {where: in_both("functions", where) for where in RECORD["functions"]}
METHODS = in_both("classes", "ndarray")


class ndarray:
    """cupy.ndarray, as strict as it is where it must be."""

    __array_ufunc__ = None  # numpy's functions refuse it
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, array: Any, ledger: Ledger):
        array = np.asarray(array)
        if array.base is None:
            ledger.allocate(array)
        self._a, self._ledger = array, ledger

    def __array__(self, *_: Any) -> None:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __getattr__(self, name: str) -> Any:
        kind = METHODS.get(name)
        if kind is None or name.startswith("__"):
            raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}")
        if name == "set":
            return self._set
        self._ledger.used(self._a)
        value = getattr(self._a, name) if name != "get" else (lambda *_: None)
        if kind == "attribute":
            return wrap(value, self._ledger) if isinstance(value, np.ndarray) else value

        def method(*args: Any, **kwargs: Any) -> Any:
            check_call(name, kind, args, kwargs)
            if name in WAITING_METHODS:
                self._ledger.counts.waits += 1
            if name not in VIEWS:
                self._ledger.moved(self._a)
            if name == "get":
                self._ledger.counts.bytes_to_host += self._a.nbytes
                self._ledger.counts.volumes_to_host += self._a.ndim == 3
                return self._a.copy()
            result = value(*unwrap(args), **unwrap(kwargs))
            return result if name in ("item", "tolist", "tobytes") else wrap(result, self._ledger)
        return method

    def _set(self, arr: np.ndarray, stream: Any) -> None:
        """Only as the engine may use it: from pinned memory, on a stream, into what nobody uses meanwhile."""
        if type(arr) is not np.ndarray or (arr.dtype, arr.shape) != (self._a.dtype, self._a.shape):
            raise TypeError("not the array's shape and type")
        if not self._a.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        stream.order(self._a, arr)

    def __len__(self) -> int:
        return len(self._a)

    def __iter__(self) -> Any:
        return (wrap(row, self._ledger) for row in self._a)

    def __getitem__(self, key: Any) -> "ndarray":
        found = self._a[self._key(key)]
        if found.base is None:
            self._ledger.moved(found)
        return wrap(found, self._ledger)

    def __setitem__(self, key: Any, value: Any) -> None:
        key = self._key(key)
        parts = key if isinstance(key, tuple) else (key,)
        masks = [part for part in parts if isinstance(part, np.ndarray) and part.dtype.kind == "b"]
        if masks and isinstance(value, ndarray) and value.ndim:
            raise NotImplementedError("assignment of an array to a mask")
        self._ledger.moved(value._a if isinstance(value, ndarray) else self._a[key])
        self._a[key] = unwrap(value)

    def _key(self, key: Any) -> Any:
        key = unwrap(key)
        for part in key if isinstance(key, tuple) else (key,):
            if isinstance(part, np.ndarray) and part.dtype == bool:
                self._ledger.counts.waits += 1
            elif isinstance(part, np.ndarray) and part.dtype.kind not in "iu":
                raise IndexError("arrays used as indices must be of integer or boolean type")
        return key

    def _scalar(self, convert: Any) -> Any:
        self._ledger.counts.waits += 1
        return convert(self._a)

    def __bool__(self) -> bool:
        return self._scalar(bool)

    def __int__(self) -> int:
        return self._scalar(int)

    def __index__(self) -> int:
        return self._scalar(operator.index)

    def __float__(self) -> float:
        return self._scalar(float)

    def __repr__(self) -> str:
        return f"cupy.{self._a!r}"


ndarray.__module__ = "cupy"


def _unary(name: str) -> None:
    plain = getattr(operator, f"__{name}__")
    setattr(ndarray, f"__{name}__", lambda self: wrap(plain(self._ledger.moved(self._a)), self._ledger))


def _binary(name: str) -> None:
    """The operator, its reflection and its in-place form, as far as CuPy has them."""
    plain = getattr(operator, f"__{name}__")

    def forward(self: ndarray, other: Any) -> Any:
        return wrap(plain(self._ledger.moved(self._a), unwrap(other)), self._ledger)

    def reflected(self: ndarray, other: Any) -> Any:
        return wrap(plain(unwrap(other), self._ledger.moved(self._a)), self._ledger)

    def in_place(self: ndarray, other: Any) -> Any:
        getattr(operator, f"__i{name}__")(self._ledger.moved(self._a, self._a), unwrap(other))
        return self

    for method, function in ((f"__{name}__", forward), (f"__r{name}__", reflected), (f"__i{name}__", in_place)):
        if method in METHODS:
            setattr(ndarray, method, function)


for _name in BINARY + COMPARISONS:
    _binary(_name)
for _name in ("neg", "abs", "invert", "pos"):
    _unary(_name)


def wrap(value: Any, ledger: Ledger) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(value, ledger)
    if isinstance(value, (tuple, list)):
        return tuple(wrap(v, ledger) for v in value)
    return value


def unwrap(value: Any) -> Any:
    """The numpy arrays inside; TypeError for an array that is not on the device."""
    if isinstance(value, ndarray):
        value._ledger.used(value._a)
        value._ledger.counts.traffic += value._a.nbytes
        return value._a
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, (tuple, list)):
        return type(value)(unwrap(v) for v in value)
    if isinstance(value, dict):
        return {name: unwrap(v) for name, v in value.items()}
    return value


def check_call(name: str, declared: str, args: tuple, kwargs: dict) -> None:
    """TypeError unless CuPy's function takes these arguments."""
    if declared.startswith("ufunc"):
        declared = ", ".join([f"x{i}" for i in range(int(declared.split()[1]))] + ["out=", "*", "casting=", "dtype="])
    words = [word.strip() for word in declared.split(",") if word.strip()]
    names = [word.rstrip("=") for word in words]
    before = words.index("*") if "*" in words else len(words)
    if not any(word.startswith("*") and len(word) > 1 for word in words):
        required = sum(not word.endswith("=") for word in words[:before])
        given = len(args) + sum(key in names[:before] for key in kwargs)
        if len(args) > before or given < required or not set(kwargs) <= set(names):
            raise TypeError(f"cupy.{name}({declared}) does not take {len(args)} arguments and {sorted(kwargs)}")


def check_values(name: str, args: tuple, kwargs: dict) -> None:
    """What CuPy's implementation of a function asks of its arguments beyond numpy's."""
    if name == "lexsort" and not (isinstance(args[0], ndarray) and args[0].ndim == 2):
        raise TypeError("lexsort takes an array (k, n)")
    if name == "searchsorted" and not all(isinstance(a, ndarray) for a in args[:2]):
        raise NotImplementedError("Only int or ndarray are supported for a and v")
    if name == "bincount" and args[0].size == 0:
        raise ValueError("zero-size array to reduction operation cupy_max which has no identity")
    if name in ("argsort", "sort") and kwargs.get("kind") not in (None, "stable"):
        raise ValueError("kind can only be None or 'stable'")
    if name == "interp" and not args[0].flags.c_contiguous:
        raise NotImplementedError("Non-C-contiguous x is currently not supported")
    if name == "solve" and not (args[1].ndim in (args[0].ndim, args[0].ndim - 1)
                                and args[0].shape[:-1] == args[1].shape[:args[0].ndim - 1]):
        raise ValueError("a must have (..., M, M) shape and b must have (..., M) or (..., M, K)")


def other_eigh(a: np.ndarray) -> Any:
    """Eigenvectors as another library may give them: the other sign, and turned where eigenvalues are equal."""
    values, vectors = np.linalg.eigh(a)
    vectors = -vectors
    n = values.shape[-1]
    for i in range(n - 1):
        equal = np.isclose(values[..., i], values[..., i + 1], rtol=1e-12, atol=0)[..., None]
        first, second = vectors[..., i].copy(), vectors[..., i + 1].copy()
        vectors[..., i] = np.where(equal, 0.6 * first + 0.8 * second, first)
        vectors[..., i + 1] = np.where(equal, -0.8 * first + 0.6 * second, second)
    return values, vectors


def other_label(input: np.ndarray, structure: Any = None, output: Any = None) -> Any:
    """Parts numbered from the last to the first."""
    labels, count = scipy.ndimage.label(input, structure, output)
    return np.where(labels, count + 1 - labels, 0), count


OTHER_CHOICES = {"label": other_label, "eigh": other_eigh,
                 "argsort": lambda a, axis=-1, kind=None: np.argsort(a, axis, kind="stable")}
"""Where a library may choose, the stand-in chooses otherwise than numpy; CuPy's sorts are stable."""


class Namespace(types.ModuleType):
    """cupy, cupy.linalg, cupy.fft, …: numpy's function of the same name, behind CuPy's arguments."""

    def __init__(self, path: str, ledger: Ledger):
        super().__init__(path if path.startswith("cupyx") else ".".join(filter(None, ("cupy", path))))
        self.__spec__ = importlib.machinery.ModuleSpec(self.__name__, None)
        self.__dict__.update(_path=path, _ledger=ledger, _numpy=getattr(np, path, np) if path else np)

    def __getattr__(self, name: str) -> Any:
        kind = FUNCTIONS[self._path].get(name)
        if kind is None:
            raise AttributeError(f"module '{self.__name__}' has no attribute {name!r}")
        if kind in ("class", "constant"):
            return getattr(np, name)
        return Function(name, kind, self._function(name), self._ledger)

    def _function(self, name: str) -> Any:
        if name in OTHER_CHOICES:
            return OTHER_CHOICES[name]
        return getattr(scipy.fft if self._path == "fft" and name in FROM_SCIPY else self._numpy, name)


class Function:
    """A function or a ufunc of CuPy."""

    def __init__(self, name: str, declared: str, function: Any, ledger: Ledger):
        self.name, self.declared, self.function, self.ledger = name, declared, function, ledger

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        check_call(self.name, self.declared, args, kwargs)
        check_values(self.name, args, kwargs)
        if self.name in WAITING_FUNCTIONS:
            self.ledger.counts.waits += 1
        self.ledger.counts.calls += 1
        result = wrap(self.function(*unwrap(args), **unwrap(kwargs)), self.ledger)
        if isinstance(kwargs.get("out"), ndarray):
            return kwargs["out"]
        if self.name.startswith("empty"):
            result._a.fill(np.nan if result.dtype.kind in "fc" else 77)
        return result

    def at(self, target: Any, index: Any, value: Any) -> None:
        if self.name not in ("add", "subtract", "maximum", "minimum") or target.dtype.kind == "c":
            raise TypeError(f"cupy.{self.name}.at is not supported for {target.dtype}")
        self.function.at(target._a, unwrap(index), unwrap(value))


def make_cupy(folder: Path, sanitizer: str = "", workers: int = 1, backwards: bool = False) -> Namespace:
    """A module to put into sys.modules as "cupy"; ``folder`` keeps compiled kernels."""
    ledger = Ledger()
    cupy, pool = Namespace("", ledger), Pool()

    class RawModule:
        def __init__(self, code: Any = None, *, options: tuple = ()):
            self.source = Source(code, folder, sanitizer, workers, backwards)

        def get_function(self, name: str) -> Any:
            def kernel(grid: tuple, block: tuple, args: tuple) -> None:
                ledger.counts.launches += 1
                self.source.launch(name, grid, block, [launchable(value) for value in args])
            return kernel

    def asarray(a: Any, dtype: Any = None) -> ndarray:
        if isinstance(a, np.ndarray):
            ledger.counts.bytes_to_device += a.nbytes
            return ndarray(np.array(a, dtype), ledger)
        return ndarray(np.asarray(unwrap(a), dtype), ledger)

    cupy.__dict__.update(
        __version__=RECORD["version"], ndarray=ndarray, RawModule=RawModule, asarray=asarray, ledger=ledger,
        linalg=Namespace("linalg", ledger), fft=Namespace("fft", ledger), cuda=cuda_namespace(ledger),
        get_default_memory_pool=lambda: pool)
    cupy.fft.__dict__["config"] = types.SimpleNamespace(clear_plan_cache=lambda: None)
    return cupy


def beside(cupy: Namespace) -> Dict[str, types.ModuleType]:
    """What is imported beside cupy, by the names of the modules."""
    path = "cupyx.scipy.ndimage"
    modules = {name: types.ModuleType(name) for name in ("cupyx", "cupyx.scipy")}
    modules[path] = Namespace(path, cupy.ledger)
    modules["cupyx"].scipy, modules["cupyx.scipy"].ndimage = modules["cupyx.scipy"], modules[path]  # type: ignore
    return modules


def launchable(value: Any) -> Any:
    """A kernel's argument: an array of the device, or a typed scalar (a Python int would be 8 bytes)."""
    if isinstance(value, ndarray):
        value._ledger.used(value._a)
        return value._a
    if isinstance(value, np.generic):
        return value
    raise TypeError(f"a kernel cannot take a {type(value).__name__}")


