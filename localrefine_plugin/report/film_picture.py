"""The animated picture of a film that the engine made:

    python -m localrefine_plugin.report.film_picture RUN [FILE.gif]

writes RUN/final/film/film.gif, or FILE.gif.
"""
from __future__ import annotations

import sys
from pathlib import Path
from typing import List, Optional, Sequence

from matplotlib.figure import Figure

from ..engine.io.run_folder import write_atomic
from . import film_plots
from .run_state import RunState

NO_FILM = ("No film has been made of this run. Make one with 'Film of the motion' in Analyze Results, or with "
           "python -m localrefine_plugin.engine film RUN")


def views_of(state: RunState, only_three: bool = False) -> Optional[List[List[film_plots.View]]]:
    """The views of the film's axes, all frames or first, middle and last; None without a film or one of its maps."""
    film, folder = state.film, state.folder.film.parent
    mask = state.map(state.folder.final("mask.mrc"))
    if film is None or mask is None or not all((folder / name).exists() for axis in film.axes for name in axis.frames):
        return None
    last = len(film.axes[0].frames) - 1
    return film_plots.pictures_of(folder, film, mask, (0, last // 2, last) if only_three else None)


def still(state: RunState) -> Optional[Figure]:
    views = views_of(state, only_three=True)
    return None if views is None or state.film is None else film_plots.film_figure(state.film, views)


def gif(state: RunState) -> Optional[bytes]:
    """The animated picture that is there, or a new one; None without a film."""
    path = state.folder.film.with_name("film.gif")
    if state.film is not None and path.exists():
        return path.read_bytes()
    views = views_of(state)
    return None if views is None or state.film is None else film_plots.film_gif(state.film, views)


def write_gif(run: Path, path: Optional[Path] = None) -> Optional[Path]:
    """Write the animated picture beside the film's record, or elsewhere; None without a film."""
    state = RunState(run)
    content = gif(state)
    if content is None:
        return None
    target = path or state.folder.film.with_name("film.gif")

    def write(name: str) -> None:
        Path(name).write_bytes(content)
    write_atomic(target, write)
    return target


def main(arguments: Sequence[str]) -> int:
    if not 1 <= len(arguments) <= 2:
        print(__doc__, file=sys.stderr)
        return 2
    written = write_gif(Path(arguments[0]), Path(arguments[1]) if len(arguments) > 1 else None)
    print(f"error: {arguments[0]}: {NO_FILM}" if written is None else written,
          file=sys.stderr if written is None else sys.stdout)
    return int(written is None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
