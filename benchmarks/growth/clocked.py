"""The engine, with the CPU seconds of the process in the clock of its phases.

    python -m benchmarks.growth.clocked refine ...        as python -m localrefine_plugin.engine

The last line it prints is the peak memory in MB since the last step that measured itself began.

Data: whatever the command line names.
"""
from __future__ import annotations

import sys
import time
from types import SimpleNamespace

from localrefine_plugin.engine.__main__ import main
from localrefine_plugin.engine.align import half_alignment as align
from localrefine_plugin.engine.kernels.host import peak_memory_mb

if __name__ == "__main__":
    align.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    status = main(sys.argv[1:])
    print(peak_memory_mb())
    sys.exit(status)
