"""Run folders as the verbs of the command line leave them."""
from __future__ import annotations

from localrefine_plugin.engine.io.run_folder import RunFolder, write_json
from localrefine_plugin.engine.records.settings import Settings


def command(verb, inputs, *more):
    return [verb, "--particles", str(inputs.star), "--half-map-1", str(inputs.half_1), "--half-map-2",
            str(inputs.half_2), "--mask", str(inputs.mask), "--output", str(inputs.output), *more]


def prepared(inputs, **values):
    """A run folder as `prepare` leaves it, as far as these tests need it."""
    run = RunFolder(inputs.output)
    run.iteration(0).mkdir(parents=True)
    write_json(run.settings, Settings(**values).as_dict())
    write_json(run.input, {"particles": str(inputs.star), "half_map_1": str(inputs.half_1),
                           "half_map_2": str(inputs.half_2), "mask": str(inputs.mask), "box_size": 16,
                           "pixel_size": 2.0, "resolved": {}, "optics": [], "stacks": [], "warnings": ["edge is hard"]})
    write_json(run.iteration_done(0), {"iteration": 0, "resolution_angstrom": {"tight": 9.0}, "best_iteration": 0})
    return run


def with_iterations(inputs, count):
    run = prepared(inputs)
    for k in range(1, count + 1):
        run.iteration(k).mkdir()
        for half in (1, 2):
            write_json(run.half_done(k, half), {"iteration": k, "half": half, "wall_seconds": 2.0, "cpu_seconds": 3.5,
                                                "peak_memory_mb": 100.0 * k + half})
        write_json(run.iteration_done(k), {"iteration": k, "resolution_angstrom": {"tight": 9.0 - k},
                                           "best_iteration": min(k, 2), "warnings": ["edge is hard", f"note {k}"]})
    return run
