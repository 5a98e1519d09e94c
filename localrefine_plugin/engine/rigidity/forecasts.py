"""What a local refinement of each body that was found would reach."""
from __future__ import annotations

from dataclasses import replace
from typing import List, Sequence

from ..bodies.finished import Body
from ..forecast.forecast import Inputs, forecast
from ..io.run_store import load_settings
from ..progress import say
from ..records.errors import InputError
from ..records.rigidity import RigidBody

SAMPLE = 250  # particles of each half-set
FULCRUM = "mask"  # of each body its own; the run's is that of another mask


def with_forecasts(of: Body, bodies: Sequence[RigidBody]) -> List[RigidBody]:
    """The bodies with the forecast of a refinement from the input of the run, in its settings, with their masks; as
    they are where there is one only, or where the input could not be refined again.

    Not from its results: the images agree with their own noise in half-maps that were made of them at their poses, so
    that poses would seem to be known up to twice as well as they are.
    """
    if len(bodies) < 2:
        return list(bodies)
    given = of.given
    inputs = Inputs(given.particles, given.half_map_1, given.half_map_2,
                    replace(load_settings(of.run), fulcrum=FULCRUM), SAMPLE)
    masks = [of.run.rigidity.with_name(body.mask) for body in bodies]
    try:
        found = forecast(inputs, masks, "cpu")
    except InputError as error:  # what was found is not lost
        say(f"what a refinement of each body would reach cannot be told: {error}")
        return list(bodies)
    return [replace(body, forecast=one) for body, one in zip(bodies, found)]
