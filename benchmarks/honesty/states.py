"""Whether a second state outside the search is seen in the maps (finish/second_copy.py) and its particles counted
(finish/second_state.py), and neither in sets of one state.

    python -m benchmarks.honesty.states --data FOLDER [--data FOLDER …] --work FOLDER [--write]

What was done is kept in the work folder and not done again. It ends with the assertion that a quarter of the particles
in a second state 25° away and more are seen, where the mask has little density of the rest, that the share of a state
that is seen is said and right within 10 % or two errors, and that no set of one state is said to have another. Which
state is the second one is the map's choice: the share said is that of the particles which are moved from the state that
the map shows best.

Data: FOLDER, simulated: a set of the benchmark's make_dataset.py or make_hard.py (options conf2, conf2rot).
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import List, Tuple

import numpy as np

from localrefine_plugin.engine.finish.results import map_before
from localrefine_plugin.engine.finish.second_copy import second_copy
from localrefine_plugin.engine.finish.second_state import counted
from localrefine_plugin.engine.io.mrc import read_map
from localrefine_plugin.engine.io.run_store import load_input
from localrefine_plugin.engine.kernels.host import few_threads, worker_count
from localrefine_plugin.engine.maps.half_maps import HalfMaps
from localrefine_plugin.engine.records.codec import as_json, from_json
from localrefine_plugin.engine.records.results import SecondCopy

from ..page import DOCS, arguments_of_sets, conclude, table
from .imperfections import once
from .sets import best_of, half_maps_of, iterated

PAGE = DOCS / "explanation" / "verdicts.md"
HEAD = ("set", "SNR", "particles", "of the rest in the mask", "second state", "standard deviations", "seen",
        "planted share of it", "share said")
AXIS = 0.36, 0.48, 0.8  # about which make_hard.py turns the second state
MUST_BE_SEEN = 0.24, 25.0  # share, and degrees
LITTLE = 0.2  # density of the rest in the mask
SHARE_ERROR = 0.1


def row(data: Path, work: Path, threads: int) -> Tuple[List[str], str]:
    """Cells of the table, and what is wrong with them ("" for nothing)."""
    found = from_json(SecondCopy, once(work / f"{data.name}.json", lambda: as_json(of_run(data, work, threads))))
    facts = json.loads((data / "truth.json").read_text(encoding="utf-8"))
    options, count = facts["args"], len(facts["particle"])
    share, angle = len(facts.get("second", ())) / count, options.get("conf2rot", 0.0)
    rest = rest_in_mask(data)
    asked = share >= MUST_BE_SEEN[0] and angle >= MUST_BE_SEEN[1] and rest < LITTLE
    seen = share if not found.found or np.dot(found.rotation_vector, AXIS) > 0 else 1 - share
    wrong = asked and not found.found or found.found and (not share or not is_right(found, seen))
    said = "–" if found.share is None else f"{100 * found.share:.0f} ± {100 * (found.share_error or 0):.0f} %"
    cells = [data.name, f"{options['snr']:g}", str(count), f"{100 * rest:.0f} %",
             f"{100 * share:.0f} %, {angle:g}°" if share else "–", f"{found.deviations:.1f}",
             f"{found.rotation_deg:.0f}°, {found.displacement_angstrom:.0f} Å" if found.found else "–",
             f"{100 * seen:.0f} %" if found.found else "–", said]
    print(*cells, flush=True)
    return cells, data.name if wrong else ""


def is_right(found: SecondCopy, share: float) -> bool:
    return found.share is not None and abs(found.share - share) < max(SHARE_ERROR, 2 * (found.share_error or 0.0))


def rest_in_mask(data: Path) -> float:
    """The share of the density in the mask that is not the body's."""
    mask, rest, body = (read_map(data / name)[0] for name in ("mask_B.mrc", "gt_A.mrc", "gt_B.mrc"))
    return float((mask * rest).sum() / (mask * (rest + body)).sum())


def of_run(data: Path, work: Path, threads: int) -> SecondCopy:
    """What a run says, from its iterations alone."""
    run = iterated(data, work / data.name, threads)
    k, halves = best_of(run), HalfMaps(*half_maps_of(run))
    with few_threads(worker_count(threads)):
        copy = second_copy(halves, read_map(run.mask_in_use(k))[0], load_input(run).pixel_size, "C1", map_before(run))
        return counted(run, k, copy, worker_count(threads))


def main() -> None:
    options = arguments_of_sets(__doc__).parse_args()
    names = " ".join(f"--data {data.name}" for data in options.data)
    rows, problems = zip(*(row(data, options.work, options.threads) for data in options.data))
    conclude("states", PAGE if options.write else None, f"`python -m benchmarks.honesty.states {names} --work FOLDER "
             f"--write`\n\n{table(HEAD, rows)}", problems)


if __name__ == "__main__":
    main()
