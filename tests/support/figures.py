"""What a figure shows."""
from __future__ import annotations

import io

import numpy as np

from localrefine_plugin.report.html_report import png

NOT_IN_THE_FAKE_RUN = ("scale", "filter_resolution", "validation", "film", "rigidity")


def pixels(figure):
    from PIL import Image
    return np.asarray(Image.open(io.BytesIO(png(figure))).convert("RGB"))
