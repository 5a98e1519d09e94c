"""NVIDIA's driver, made up."""
from __future__ import annotations


class Driver:
    """libcuda.so.1 of a machine with these GPUs."""

    def __init__(self, gpus=1, version=12080, status=0):
        self.gpus, self.version, self.status = gpus, version, status

    def cuInit(self, flags):
        return self.status

    def cuDeviceGetCount(self, count):
        count._obj.value = self.gpus
        return 0

    def cuDriverGetVersion(self, version):
        version._obj.value = self.version

    def cuDeviceGet(self, handle, index):
        handle._obj.value = index

    def cuDeviceGetName(self, name, size, handle):
        name.value = f"GPU {handle.value}".encode()

    def cuDeviceGetAttribute(self, value, attribute, handle):
        value._obj.value = {75: 8, 76: 6}[attribute]
