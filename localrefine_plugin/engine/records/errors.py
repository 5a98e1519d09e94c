"""What bad input is called: one sentence of problem, source and remedy."""
from __future__ import annotations

from typing import Dict


class InputError(Exception):
    """Bad input, said in one sentence.

    Parameters
    ----------
    problem : what is wrong.
    source : the input concerned (a file name, a setting, a column).
    remedy : what the user can do about it.
    """

    def __init__(self, problem: str, source: str, remedy: str):
        self.problem, self.source, self.remedy = problem, source, remedy
        super().__init__(f"{source}: {problem}; {remedy}")

    def as_dict(self) -> Dict[str, str]:
        return {"message": str(self), "problem": self.problem, "input": self.source, "remedy": self.remedy}


class OtherPixels(Exception):
    """A stack does not hold pixels of the type that its images are asked for in."""
