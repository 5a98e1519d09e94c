"""A picture of a run as a view of Scipion: a window with a slider over the iterations and a toolbar that saves
PNG, SVG and PDF. While the run goes on the window follows it."""
from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

from matplotlib.figure import Figure
from pyworkflow.viewer import View

LOOK_AGAIN_MS = 3000


class FigureView(View):
    """Shows the Figure of an iteration.

    Parameters
    ----------
    draw : iteration (None: the result so far) → Figure.
    title : of the window.   parent : a Tk widget, or None for a window of its own.
    iterations : () → (last, result): the last iteration there is and the best one; None for a picture of all.
    chosen : the iteration shown first; None shows the result and follows the run.
    stamp : () → something that changes when the run has got further.
    news : () → what the run is doing now, for the line under the picture ("" for nothing).
    """

    def __init__(self, draw: Callable[[Optional[int]], Figure], title: str, parent: Any = None,
                 iterations: Optional[Callable[[], Tuple[int, int]]] = None, chosen: Optional[int] = None,
                 stamp: Callable[[], Any] = lambda: None, news: Callable[[], str] = lambda: ""):
        super().__init__()
        self._draw, self._title, self._parent = draw, title, parent
        self._iterations, self._chosen, self._stamp = iterations, chosen, stamp
        self._news = news
        self._drawn, self._shown = None, 0
        self._canvas = self._toolbar = self._slider = None

    def show(self) -> Any:
        """Open the window and return it."""
        import tkinter as tk
        self.window = tk.Toplevel(self._parent)
        self.window.title(self._title)
        self._add_bar(tk)
        self.news = tk.Label(self.window, anchor="w", padx=6)
        self.redraw()
        self._tell_news()
        self._timer = self.window.after(LOOK_AGAIN_MS, self._follow)
        self.window.bind("<Destroy>", self._on_destroy)
        return self.window

    def _add_bar(self, tk: Any) -> None:
        bar = tk.Frame(self.window)
        bar.pack(side=tk.TOP, fill=tk.X, padx=6, pady=2)
        tk.Button(bar, text="Reload", command=self.redraw).pack(side=tk.RIGHT)
        if self._iterations is not None:
            tk.Label(bar, text="Iteration (0 = input)").pack(side=tk.LEFT)
            self._slider = tk.Scale(bar, orient=tk.HORIZONTAL, from_=0, to=0, length=220, command=self._on_slide)
            self._slider.pack(side=tk.LEFT, padx=6)
            tk.Button(bar, text="Result", command=lambda: self.choose(None)).pack(side=tk.LEFT)

    def _on_slide(self, value: str) -> None:
        if int(value) != self._shown:  # Tk calls this for values set by the program, too
            self.choose(int(value))

    def choose(self, iteration: Optional[int]) -> None:
        """Show an iteration; None shows the result so far and follows the run."""
        self._chosen = iteration
        self.redraw()

    def redraw(self) -> None:
        """Read the run again and draw."""
        import tkinter as tk

        from matplotlib.backends.backend_tkagg import FigureCanvasTkAgg, NavigationToolbar2Tk
        self._drawn = self._stamp()
        if self._slider is not None:
            last, result = self._iterations()
            self._shown = result if self._chosen is None else self._chosen
            self._slider.configure(to=max(last, self._shown))
            self._slider.set(self._shown)
        for old in (self._canvas, self._toolbar):
            if old is not None:
                old.destroy()
        self.figure = self._draw(self._chosen)
        canvas = FigureCanvasTkAgg(self.figure, master=self.window)
        self._toolbar = NavigationToolbar2Tk(canvas, self.window, pack_toolbar=False)
        self._toolbar.pack(side=tk.BOTTOM, fill=tk.X)
        self._canvas = canvas.get_tk_widget()
        self._canvas.pack(side=tk.TOP, fill=tk.BOTH, expand=True)
        canvas.draw()

    def _follow(self) -> None:
        """Draw again when a step has finished since."""
        if self._chosen is None and self._stamp() != self._drawn:
            self.redraw()
        self._tell_news()
        self._timer = self.window.after(LOOK_AGAIN_MS, self._follow)

    def _tell_news(self) -> None:
        """The line under the picture, only while there is something to say."""
        text = self._news()
        self.news.configure(text=text)
        if text:
            self.news.pack(side="bottom", fill="x", before=self._toolbar)
        else:
            self.news.pack_forget()

    def _on_destroy(self, event: Any) -> None:
        if event.widget is self.window:
            self.window.after_cancel(self._timer)
