"""Wizards of the form: forecast, fulcrum, mask check, masks of bodies, low-pass, prior, search extents.

Most of them fill in fields. What they compute is in `wizard_computations` (no windows); here are the windows.
"""
from __future__ import annotations

import tkinter as tk
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
from matplotlib.backends.backend_tkagg import FigureCanvasTkAgg
from matplotlib.figure import Figure
from pyworkflow.gui.dialog import RESULT_YES, Dialog, askYesNo, showError, showInfo
from pyworkflow.wizard import Wizard
from scipy import ndimage

from . import wizard_computations
from .protocols import ProtLocalRecentre, ProtLocalRefine
from .protocols.form_local_refine import FULCRUM_AXES, FULCRUM_COORDINATES
from .report.map_plots import mask_layout_figure, outline, slice_of
from .report.plots import VERMILION

SMOOTH_PX = 1.2  # of the picture only: an unfiltered map is too noisy to find a hinge in
PLANES = ((0, "xy", (0, 1)), (1, "xz", (0, 2)), (2, "yz", (1, 2)))  # array axis cut, name, coordinates shown


class FulcrumDialog(Dialog):
    """Three slices through a point of the map; a click moves the point.

    Parameters
    ----------
    density, mask : [z, y, x].   start_px : x, y, z from the corner of the box.
    places : name → x, y, z of the buttons.
    After OK, ``result`` is RESULT_YES and ``point_px`` the chosen point.
    """

    def __init__(self, parent: Any, density: np.ndarray, mask: Optional[np.ndarray], start_px: Sequence[float],
                 places: Dict[str, Sequence[float]]):
        self._density, self._mask, self._places = ndimage.gaussian_filter(density, SMOOTH_PX), mask, places
        self.point_px = [float(v) for v in start_px]
        super().__init__(parent, "Fulcrum: the point the sub-volume turns about", default="")

    def body(self, master: Any) -> None:
        tk.Label(master, text="Click on a slice, or drag, to move the fulcrum. Blue: the mask at 0.5.").pack(anchor="w")
        self.figure = Figure(figsize=(9.0, 3.4), dpi=100, layout="constrained")
        self._axes = self.figure.subplots(1, 3)
        self._canvas = FigureCanvasTkAgg(self.figure, master=master)
        self._canvas.get_tk_widget().pack(fill=tk.BOTH, expand=True)
        self._canvas.mpl_connect("button_press_event", self._on_mouse)
        self._canvas.mpl_connect("motion_notify_event", self._on_mouse)
        self._entries = self._make_entries(tk.Frame(master))
        self._draw()

    def _make_entries(self, frame: tk.Frame) -> List[tk.StringVar]:
        frame.pack(anchor="w", pady=4)
        variables = []
        for name, value in zip("xyz", self.point_px):
            variable = tk.StringVar(frame, value=f"{value:.1f}")
            tk.Label(frame, text=f"{name} (px)").pack(side=tk.LEFT, padx=(6, 2))
            entry = tk.Entry(frame, textvariable=variable, width=8)
            entry.pack(side=tk.LEFT)
            entry.bind("<FocusOut>", self._on_entry)
            entry.bind("<KeyRelease-Return>", self._on_entry)
            variables.append(variable)
        for name, place in self._places.items():
            tk.Button(frame, text=name, command=lambda p=place: self.move_to(p)).pack(side=tk.LEFT, padx=6)
        return variables

    def move_to(self, point_px: Sequence[float]) -> None:
        """Put the fulcrum at x, y, z px (kept inside the box) and redraw."""
        sizes = self._density.shape[::-1]
        self.point_px = [float(np.clip(v, 0, n - 1)) for v, n in zip(point_px, sizes)]
        for variable, value in zip(self._entries, self.point_px):
            variable.set(f"{value:.1f}")
        self._draw()

    def _on_entry(self, _event: Any = None) -> None:
        try:
            self.move_to([float(variable.get()) for variable in self._entries])
        except ValueError:  # not a number yet: keep the point, show it again
            self.move_to(self.point_px)

    def _on_mouse(self, event: Any) -> None:
        """A click, or a move with the left button down, sets the two coordinates of the slice."""
        if event.inaxes is None or event.button != 1 or event.xdata is None:
            return
        plane = list(self._axes).index(event.inaxes)
        horizontal, vertical = PLANES[plane][2]
        point = list(self.point_px)
        point[horizontal], point[vertical] = event.xdata, event.ydata
        self.move_to(point)

    def _draw(self) -> None:
        centre = [int(round(v)) for v in reversed(self.point_px)]
        low, high = np.percentile(self._density, [1, 99.8])
        for axes, (axis, name, (horizontal, vertical)) in zip(self._axes, PLANES):
            axes.clear()
            axes.imshow(slice_of(self._density, axis, centre), cmap="gray", origin="lower", vmin=low,
                        vmax=max(high, low + 1e-9))
            if self._mask is not None:
                outline(axes, slice_of(self._mask, axis, centre))
            axes.axvline(self.point_px[horizontal], color=VERMILION, lw=0.8)
            axes.axhline(self.point_px[vertical], color=VERMILION, lw=0.8)
            axes.set_title(name)
            axes.set_xlabel(f"{'xyz'[horizontal]} (px)")
            axes.set_ylabel(f"{'xyz'[vertical]} (px)")
        self._canvas.draw_idle()

    def apply(self) -> None:
        self._on_entry()


def guarded(show: Callable[..., None]) -> Callable[..., None]:
    """A wizard says what it lacks in a message instead of a traceback in a terminal nobody sees."""
    def wrapper(self: Any, form: Any, *params: Any) -> None:
        try:
            show(self, form, *params)
        except Exception as error:
            showError("The wizard cannot help yet", str(error), form.root)
    return wrapper


class FulcrumWizard(Wizard):
    """Pick the fulcrum on three slices of the map."""

    _targets = [(ProtLocalRefine, ["fulcrum", *FULCRUM_AXES]), (ProtLocalRecentre, ["fulcrum", *FULCRUM_AXES])]

    @guarded
    def show(self, form: Any, *params: Any) -> None:
        density, mask = wizard_computations.map_and_mask(form.protocol)
        places = dict(wizard_computations.places(density, mask), **wizard_computations.learned_hinges(form.protocol))
        fulcrum = wizard_computations.current_fulcrum(form.protocol, places)
        dialog = FulcrumDialog(form.root, density, mask, fulcrum, places)
        if dialog.result == RESULT_YES:
            form.setVar("fulcrum", form.protocol.getParam("fulcrum").choices.index(FULCRUM_COORDINATES))
            for axis, value in zip(FULCRUM_AXES, dialog.point_px):
                form.setVar(axis, round(value, 2))


class ForecastWizard(Wizard):
    """What the run will reach, by some of its particles, for the mask chosen and others of the project."""

    _targets = [(ProtLocalRefine, ["inputParticles"])]

    @guarded
    def show(self, form: Any, *params: Any) -> None:
        names = [name for name, _ in wizard_computations.masks_to_compare(form.protocol)]
        question = (f"Forecast what the run will reach, with {', '.join(names)}? It takes about a minute for each "
                    "mask; the window waits.")
        if askYesNo("Forecast", question, form.root):
            showInfo("Forecast", "\n".join(wizard_computations.forecast_lines(form.protocol)), form.root)


class MaskDialog(Dialog):
    """Masks to choose from, each with slices of the map and its figures.

    Parameters
    ----------
    protocol : whose form asks.  choices : what each mask is, and its pointer; the first is shown at the start.
    After OK, ``result`` is RESULT_YES and ``chosen`` the pointer.
    """

    def __init__(self, parent: Any, protocol: Any, choices: Sequence[Tuple[str, Any]]):
        self._protocol, self._choices = protocol, choices
        density, _ = wizard_computations.map_and_mask(protocol)
        self._density = ndimage.gaussian_filter(density, SMOOTH_PX)
        super().__init__(parent, "Mask of the sub-volume", default="")

    def body(self, master: Any) -> None:
        self.variable = tk.IntVar(master, value=0)
        for number, (name, _) in enumerate(self._choices):
            tk.Radiobutton(master, text=name, variable=self.variable, value=number,
                           command=self._draw).pack(anchor="w")
        self.figure = Figure(figsize=(9.0, 3.2), dpi=100, layout="constrained")
        self._axes = self.figure.subplots(1, 3)
        self._canvas = FigureCanvasTkAgg(self.figure, master=master)
        self._canvas.get_tk_widget().pack(fill=tk.BOTH, expand=True)
        self._said = tk.Label(master, justify=tk.LEFT, anchor="w")
        self._said.pack(fill=tk.X)
        self._draw()

    @property
    def chosen(self) -> Any:
        return self._choices[self.variable.get()][1]

    def _draw(self) -> None:
        """The mask chosen: slices through its centre, and what is to be said of it."""
        mask = wizard_computations.read_mask(self.chosen)
        x, y, z = wizard_computations.places(mask, mask)[wizard_computations.MASK_CENTRE]
        centre = [int(round(v)) for v in (z, y, x)]
        low, high = np.percentile(self._density, [1, 99.8])
        for axes, (axis, name, _) in zip(self._axes, PLANES):
            axes.clear()
            axes.imshow(slice_of(self._density, axis, centre), cmap="gray", origin="lower", vmin=low,
                        vmax=max(high, low + 1e-9))
            outline(axes, slice_of(mask, axis, centre))
            axes.set_title(f"{name}, through the centre of the mask", fontsize=8)
            axes.axis("off")
        self._canvas.draw_idle()
        self._said.config(text="\n".join(wizard_computations.mask_report(self._protocol, mask)))


class MaskWizard(Wizard):
    """Look at the mask, measure it and its fit to the map; or choose one that *find moving bodies* proposes."""

    _targets = [(ProtLocalRefine, ["inputMask"])]

    @guarded
    def show(self, form: Any, *params: Any) -> None:
        choices = wizard_computations.masks_to_choose(form.protocol)
        if not choices:
            raise wizard_computations.Missing(
                "Choose the mask first. If you have none, the protocol *find moving bodies* makes a mask of each part "
                "that moves by itself; this wizard then offers them.")
        wizard_computations.half_maps(form.protocol)  # says which is missing
        dialog = MaskDialog(form.root, form.protocol, choices)
        if dialog.result == RESULT_YES:
            form.setVar("inputMask", dialog.chosen)


class MasksDialog(Dialog):
    """Slices of the density coloured by the masks of several bodies, above sentences on how they lie."""

    def __init__(self, parent: Any, figure: Figure, lines: Sequence[str]):
        self._figure, self._lines = figure, lines
        super().__init__(parent, "Masks of the bodies", buttons=[("Close", RESULT_YES)], default="Close")

    def body(self, master: Any) -> None:
        canvas = FigureCanvasTkAgg(self._figure, master=master)
        canvas.get_tk_widget().pack(fill=tk.BOTH, expand=True)
        width = int(self._figure.get_figwidth() * self._figure.dpi)
        for line in self._lines:
            tk.Label(master, text=line, wraplength=width, justify="left").pack(anchor="w", padx=8, pady=1)


class MoreMasksWizard(Wizard):
    """How the masks of several bodies lie: their shares of the density, what they share, and what none covers."""

    _targets = [(ProtLocalRefine, ["moreMasks"])]

    @guarded
    def show(self, form: Any, *params: Any) -> None:
        density, masks, lines = wizard_computations.mask_layout(form.protocol)
        MasksDialog(form.root, mask_layout_figure(density, masks), lines)


class InitialLowpassWizard(Wizard):
    """Resolution of the half-maps inside the mask plus a margin."""

    _targets = [(ProtLocalRefine, ["initialLowpass"])]

    @guarded
    def show(self, form: Any, *params: Any) -> None:
        form.setVar("initialLowpass", round(wizard_computations.initial_lowpass(form.protocol), 2))


class PriorWizard(Wizard):
    """The widths that an earlier run learned for this part; without one, those most runs begin with."""

    _targets = [(ProtLocalRefine, ["priorRotation", "priorShift"])]

    @guarded
    def show(self, form: Any, *params: Any) -> None:
        values, reason = wizard_computations.prior_widths(form.protocol)
        for name, value in zip(("priorRotation", "priorShift"), values):
            form.setVar(name, round(value, 2))
        showInfo("Prior", reason, form.root)


class ExtentWizard(Wizard):
    """Three standard deviations of the prior; the engine's free extents without one."""

    _targets = [(ProtLocalRefine, ["rotationExtent", "shiftExtent"])]

    @guarded
    def show(self, form: Any, *params: Any) -> None:
        values: Tuple[float, float] = wizard_computations.search_extents(form.protocol)
        for name, value in zip(("rotationExtent", "shiftExtent"), values):
            form.setVar(name, round(value, 2))
