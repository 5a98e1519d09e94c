"""A virtual screen, and photographs of Tk windows on it: for the pictures of the documentation and for tests.

Needs the programs Xvfb, openbox (a window manager: windows without one have no size of their own) and ImageMagick's
import.
"""
from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path
from typing import Any, Iterator, List

PROGRAMS = ("Xvfb", "openbox", "import")


@contextlib.contextmanager
def virtual_screen(width: int = 1400, height: int = 1000) -> Iterator[str]:
    """DISPLAY of a screen of this size; gone at the end."""
    reader, writer = os.pipe()
    arguments = ["-displayfd", str(writer), "-screen", "0", f"{width}x{height}x24", "-nolisten", "tcp"]
    server = subprocess.Popen(["Xvfb", *arguments], pass_fds=[writer], stderr=subprocess.DEVNULL)
    os.close(writer)
    with os.fdopen(reader) as handle:
        display = ":" + handle.readline().strip()
    manager = subprocess.Popen(["openbox"], env=dict(os.environ, DISPLAY=display), stderr=subprocess.DEVNULL)
    time.sleep(0.3)
    try:
        yield display
    finally:
        for process in (manager, server):
            process.terminate()
            process.wait(timeout=10)


def settle(widget: Any, seconds: float = 0.6) -> None:
    """Let Tk work for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        widget.update()
        time.sleep(0.02)


def photograph(window: Any, path: Path, geometry: str = "", seconds: float = 0.6) -> None:
    """The inside of a Tk window as the screen shows it."""
    window.deiconify()
    window.lift()
    if geometry:
        window.geometry(geometry)
    settle(window, seconds)
    subprocess.run(["import", "-window", str(int(window.winfo_id())), str(path)], check=True)


def notebooks(widget: Any) -> List[Any]:
    """Every ttk.Notebook below a widget."""
    import tkinter.ttk as ttk
    own = [widget] if isinstance(widget, ttk.Notebook) else []
    return own + [n for child in widget.winfo_children() for n in notebooks(child)]


@contextlib.contextmanager
def forms_without_loop() -> Iterator[List[Any]]:
    """FormWindow.show only records the window, so that the caller keeps control; gives the list of windows."""
    import pyworkflow.gui.project  # noqa: F401  (first: pyworkflow.gui.form alone cannot be imported)
    from pyworkflow.gui.form import FormWindow
    opened: List[Any] = []
    original, FormWindow.show = FormWindow.show, lambda window, *args, **kwargs: opened.append(window)
    try:
        yield opened
    finally:
        FormWindow.show = original
