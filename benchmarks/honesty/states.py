"""Whether a second state outside the search is seen in the map (finish/second_copy.py), and none in maps of one state.

    python -m benchmarks.honesty.states [--shares] --data FOLDER [--data FOLDER …] --work FOLDER [--write]

A set whose finished run is in --work already is not refined again. It ends with the assertion that half of the
particles in a second state 30° away and more are seen, and that no set of one state is said to have another. With
--shares the particles in the second state are counted (finish/second_state.py), after the iterations alone; it ends
with the assertion that the share is right within 10 %.

Data: FOLDER, simulated: a set of the benchmark's make_dataset.py or make_hard.py (options conf2, conf2rot).
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import List, Tuple

from examples.evaluate import read_map
from localrefine_plugin.engine.finish.second_copy import second_copy
from localrefine_plugin.engine.finish.second_state import counted
from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.engine.maps.half_maps import HalfMaps

from ..page import DOCS, arguments_of_sets, conclude, table
from .forecast import finished
from .sets import best_of, half_maps_of, iterated

PAGE = DOCS / "explanation" / "verdicts.md"
HEAD = ("set", "SNR", "particles", "second state", "seen", "standard deviations")
SHARE_HEAD = ("set", "SNR", "particles", "second state", "standard deviations", "seen", "share said")
MUST_BE_SEEN = 0.45, 29.0  # share, and degrees


def row(data: Path, work: Path, threads: int) -> Tuple[List[str], str]:
    """Cells of the table, and what is wrong with them ("" for nothing)."""
    inputs = [str(data / part) for part in ("particles.star", "half1.mrc", "half2.mrc", "mask_B.mrc")]
    run = finished(data, inputs, work, threads)
    halves = HalfMaps(*(read_map(run.final(f"half_map_{half}.mrc")) for half in (1, 2)))
    found = second_copy(halves, read_map(run.final("mask.mrc")), read_json(run.input)["pixel_size"], "C1")
    facts = json.loads((data / "truth.json").read_text(encoding="utf-8"))
    options, count = facts["args"], len(facts["particle"])
    share, angle = len(facts.get("second", ())) / count, options.get("conf2rot", 0.0)
    wrong = found.found and not share or not found.found and share >= MUST_BE_SEEN[0] and angle >= MUST_BE_SEEN[1]
    cells = [data.name, f"{options['snr']:g}", str(count), f"{100 * share:.0f} %, {angle:g}°" if share else "–",
             f"{found.rotation_deg:.0f}°, {found.displacement_angstrom:.0f} Å" if found.found else "–",
             f"{found.deviations:.1f}"]
    print(*cells, flush=True)
    return cells, data.name if wrong else ""


def share_row(data: Path, work: Path, threads: int) -> Tuple[List[str], str]:
    """As `row`, of the share of the second state."""
    run = iterated(data, work / data.name, threads)
    k, halves = best_of(run), HalfMaps(*half_maps_of(run))
    copy = second_copy(halves, read_map(run.mask_in_use(k)), read_json(run.input)["pixel_size"], "C1")
    found = counted(run, k, copy, threads)
    facts = json.loads((data / "truth.json").read_text(encoding="utf-8"))
    options, count = facts["args"], len(facts["particle"])
    share = len(facts["second"]) / count
    seen = f"{found.rotation_deg:.0f}°, {found.displacement_angstrom:.0f} Å" if found.found else "–"
    said = "–" if found.share is None else f"{100 * found.share:.0f} ± {100 * (found.share_error or 0):.0f} %"
    cells = [data.name, f"{options['snr']:g}", str(count), f"{100 * share:.0f} %, {options['conf2rot']:g}°",
             f"{copy.deviations:.1f}", seen, said]
    print(*cells, flush=True)
    return cells, "" if found.share is None or abs(found.share - share) < 0.1 else data.name


def main() -> None:
    parser = arguments_of_sets(__doc__)
    parser.add_argument("--shares", action="store_true", help="count the particles in the second state")
    options = parser.parse_args()
    names = " ".join(f"--data {data.name}" for data in options.data)
    if options.shares:
        rows, problems = zip(*(share_row(data, options.work, options.threads) for data in options.data))
        command = f"`python -m benchmarks.honesty.states --shares {names} --work FOLDER --write`"
        conclude("shares", PAGE if options.write else None, f"{command}\n\n{table(SHARE_HEAD, rows)}", problems)
        return
    rows, problems = zip(*(row(data, options.work, options.threads) for data in options.data))
    conclude("states", PAGE if options.write else None, f"`python -m benchmarks.honesty.states {names} --work FOLDER "
             f"--write`\n\n{table(HEAD, rows)}", problems)


if __name__ == "__main__":
    main()
