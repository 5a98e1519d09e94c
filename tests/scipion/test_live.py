"""What a running run says about itself: never more than five seconds old, and never Scipion's own lines."""
from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import pytest

from localrefine_plugin.engine import progress
from localrefine_plugin.protocols import ProtLocalRefine
from localrefine_plugin.report.run_summary import live_line

OLDEST_SECONDS = 5.0


@pytest.mark.parametrize("seconds_per_batch", [0.01, 0.3, 1.9])
def test_the_summary_is_never_more_than_five_seconds_old(monkeypatch, tmp_path, seconds_per_batch):
    """A clock of our own: at every moment the count in the summary is that of at most five seconds ago."""
    clock = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    log = tmp_path / "run.stdout"
    done_at = {0: 0.0}
    seen = 0
    with open(log, "w", encoding="utf-8") as handle:
        monkeypatch.setattr(sys, "stdout", handle)
        bar = progress.ProgressBar("iteration 1 half 2: align and insert", 500)
        for done in range(1, 501):
            clock[0] += seconds_per_batch
            done_at[done] = clock[0]
            bar.update(done, 500)
            line = live_line(str(log))
            shown = int(re.search(r"(\d+)/500", line[0]).group(1)) if line else 0
            assert clock[0] - done_at[shown] <= OLDEST_SECONDS
            seen += shown > 0
    assert seen > 0 and "500/500" in live_line(str(log))[0]


def test_scipions_own_lines_are_left_out(tmp_path):
    log = tmp_path / "run.stdout"
    log.write_text("\x1b[35mSTARTED\x1b[0m: alignStep, step 3, time 2026-01-01\n** Running command: **\n"
                   "\x1b[32m python -m localrefine_plugin.engine align RUN\x1b[0m\n"
                   "iteration 1 half 1: align and insert [###.] 30/40, 10 particles/s, 1 s left\n", encoding="utf-8")
    assert live_line(str(log)) == ["Now: iteration 1 half 1: align and insert [###.] 30/40, 10 particles/s, 1 s left"]
    with open(log, "a", encoding="utf-8") as handle:
        handle.write("\x1b[35mFINISHED\x1b[0m: alignStep, step 3, time 2026-01-01\n"
                     "\x1b[35mSTARTED\x1b[0m: mergeStep, step 5, time 2026-01-01\n** Running command: **\n")
    assert live_line(str(log)) == ["Now: FSC and next references"]


def test_every_step_of_the_protocol_has_words():
    from localrefine_plugin.report.run_summary import STEPS
    assert set(STEPS) == {name for name in vars(ProtLocalRefine) if name.endswith("Step")}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00garbage", b"STARTED: "])
def test_a_log_without_news_is_no_line(tmp_path, content):
    (tmp_path / "log").write_bytes(content)
    assert live_line(str(tmp_path / "log")) == []
    assert live_line(None) == live_line(str(tmp_path / "missing")) == []
