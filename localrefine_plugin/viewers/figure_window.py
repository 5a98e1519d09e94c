"""A matplotlib Figure as a view of Scipion: a window with a toolbar that also saves SVG and PDF."""
from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from pyworkflow.viewer import View


class FigureView(View):
    """Shows one Figure.

    Parameters
    ----------
    figure : the picture.   title : of the window.   parent : a Tk widget, or None for a window of its own.
    """

    def __init__(self, figure: Figure, title: str, parent: Any = None):
        super().__init__()
        self.figure, self._title, self._parent = figure, title, parent

    def show(self) -> Any:
        """Open the window and return it."""
        import tkinter as tk

        from matplotlib.backends.backend_tkagg import FigureCanvasTkAgg, NavigationToolbar2Tk
        window = tk.Toplevel(self._parent)
        window.title(self._title)
        canvas = FigureCanvasTkAgg(self.figure, master=window)
        toolbar = NavigationToolbar2Tk(canvas, window)
        toolbar.pack(side=tk.BOTTOM, fill=tk.X)
        canvas.get_tk_widget().pack(side=tk.TOP, fill=tk.BOTH, expand=True)
        canvas.draw()
        return window
