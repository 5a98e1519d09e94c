"""What the width of a mask's soft edge does to the FSC: which edges are too sharp.

    python -m benchmarks.honesty.mask_edges --data FOLDER [--data FOLDER …] [--write]

The mask of body B gets a new edge, a raised cosine about its surface (mask = 0.5), so many times as wide as the
resolution of the half-maps. Of each are given the resolution of the FSC under it as it is, and corrected by random
phases: what the mask adds by itself is their difference. Ends with the assertion that nothing is said of the masks as
they are, which are of usual widths, and that a binary one is named.

Data: FOLDER, simulated: a set of the benchmark's make_dataset.py or make_hard.py.
"""
from __future__ import annotations

from pathlib import Path
from typing import List

import numpy as np
from scipy import ndimage

from localrefine_plugin.engine.maps.fsc import five_curves
from localrefine_plugin.engine.maps.mask import check_mask, sharpest_edge_px

from ..page import DOCS
from .sets import checked_set, table_of_sets

RESOLUTION = DOCS / "explanation" / "resolution.md"
WIDTHS = 0.0, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0  # times the resolution
HEAD = ("data", "resolution d", "edge as given", *(f"{width:g} d" for width in WIDTHS))


def with_edge(mask: np.ndarray, width_px: float) -> np.ndarray:
    """The mask with an edge of this width; binary for a width of 0."""
    inside = mask > 0.5
    if width_px == 0:
        return inside.astype(np.float32)
    depth = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    return (0.5 + 0.5 * np.sin(np.pi * np.clip(depth / width_px, -0.5, 0.5))).astype(np.float32)


def row_of(data: Path) -> List[str]:
    inputs = checked_set(data)
    mask, pixel_size, box = inputs.mask, inputs.pixel_size, inputs.mask.shape[0]
    resolution = five_curves(inputs.halves, mask, pixel_size).resolutions()["corrected"]
    assert not check_mask(mask, box, pixel_size, resolution), f"{data}: its mask is named"
    assert check_mask(with_edge(mask, 0.0), box, pixel_size, resolution), f"{data}: a binary mask is not named"
    row = [data.resolve().name, f"{resolution:.2f} Å", f"{sharpest_edge_px(mask) * pixel_size / resolution:.1f} d"]
    for width in WIDTHS:
        found = five_curves(inputs.halves, with_edge(mask, width * resolution / pixel_size), pixel_size).resolutions()
        row.append(f"{found['tight']:.2f}, {found['corrected']:.2f} Å")
    print(*row, sep=" | ", flush=True)
    return row


def main() -> None:
    table_of_sets(__doc__, HEAD, lambda data: [row_of(data)], ("mask-edges", RESOLUTION),
                  "`python -m benchmarks.honesty.mask_edges {}`:")


if __name__ == "__main__":
    main()
