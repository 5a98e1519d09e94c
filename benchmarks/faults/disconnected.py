"""What the tests of the settings are worth: each runs with its setting disconnected, and must fail.

    python -m benchmarks.faults.disconnected [SETTING …] [--write]

Disconnected means that `Settings` keeps the default of this setting, whatever it is given; all else is as it is.
``--write`` puts the table into docs/reference/tests.md. Without a failure where one is due the exit status is 1.

Data: the small experiments of the tests that it runs.
"""
from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

from localrefine_plugin.engine.records.settings import Settings

from ..page import DOCS, path_of_test, table, write_section

ROOT = Path(__file__).resolve().parents[2]
TESTS_PAGE = DOCS / "reference" / "tests.md"
VARIABLE = "LOCALREFINE_DISCONNECTED"
TESTS_FAILED = 1  # pytest's exit status; others mean that no test ran

TESTS: Dict[str, str] = {
    "prior": "test_search.py::test_a_prior_pulls_towards_the_input",
    "prior_rotation_deg": "test_search.py::test_half_the_width_of_a_prior_lowers_the_change",
    "prior_shift_angstrom": "test_search.py::test_half_the_width_of_a_prior_lowers_the_change",
    "rotation_extent_deg": "test_search.py::test_no_pose_beyond_the_extents",
    "shift_extent_angstrom": "test_search.py::test_no_pose_beyond_the_extents",
    "fulcrum": "test_search.py::test_a_motion_about_a_hinge_is_found_with_the_right_fulcrum_only",
    "recenter_rotations": "test_search.py::test_prior_centre_follows_re_centring",
    "recenter_shifts": "test_search.py::test_prior_centre_follows_re_centring",
    "initial_lowpass_angstrom": "test_settings_in_a_run.py::test_a_first_reference_at_30_angstrom_finds_worse_poses",
    "max_align_resolution_angstrom":
        "test_search.py::test_nothing_beyond_the_maximum_alignment_resolution_is_used",
    "marginalize": "test_search.py::test_marginalised_images_are_inserted_where_their_posterior_is",
    "join_halves_resolution_angstrom": "test_references.py::test_joined_below_the_resolution_and_apart_beyond",
    "subtract": "test_static_part.py::test_a_run_subtracts",
    "subtract_bodies": "test_refine_bodies.py::test_each_body_has_the_bits_of_a_run_of_its_own",
    "max_iterations": "test_settings_in_a_run.py::test_iterations_end_at_their_number_and_extra_passes_follow",
    "extra_final_passes": "test_settings_in_a_run.py::test_extra_passes_follow_convergence",
    "non_uniform": "test_references.py::test_non_uniform_beats_the_global_filter_where_a_belt_is_disordered",
    "symmetry": "test_symmetry_and_scale.py::test_d2_map_is_symmetric_and_nearer_to_the_truth_than_c1",
    "allow_asymmetric_mask": "test_before_the_run.py::test_a_mask_that_breaks_the_symmetry_is_refused_unless_allowed",
    "per_particle_scale": "test_symmetry_and_scale.py::test_planted_scales_are_found_and_have_mean_one",
    "weight_by_probability": "test_verdicts.py::test_particles_that_are_not_aligned_leave_no_trace_in_the_map",
    "keep_probability": "test_selection.py::test_a_threshold_keeps_what_is_at_least_as_probable",
    "false_discovery_rate": "test_selection.py::test_a_false_discovery_rate_is_met_and_not_by_less_than_could_be",
    "non_negativity": "test_references.py::test_non_negative_references",
    "resplit_half_sets": "test_before_the_run.py::test_resplitting_is_warned_of_and_mends_copies_in_both_halves",
    "exchange_half_maps": "test_belonging.py::test_half_maps_are_exchanged_as_set",
    "resample_maps": "test_before_the_run.py::test_maps_of_another_grid_are_resampled_on_request_and_it_is_said",
    "honour_mask_origin": "test_frames.py::test_a_mask_saved_elsewhere_is_said_and_used_unmoved_or_moved_as_set",
    "fsc_randomise_below": "test_references.py::test_randomise_threshold_reaches_the_fsc",
    "sharpen_bfactor": "test_settings_in_a_run.py::test_the_b_factor_given_is_applied_and_reported",
    "mask_mode": "test_references.py::test_dynamic_mask_is_the_one_computed_by_hand",
    "mask_threshold": "test_references.py::test_threshold_relative_and_absolute",
    "mask_threshold_type": "test_references.py::test_threshold_relative_and_absolute",
    "mask_near_angstrom": "test_references.py::test_dynamic_mask_is_the_one_computed_by_hand",
    "mask_far_angstrom": "test_references.py::test_dynamic_mask_is_the_one_computed_by_hand",
    "mask_start_resolution_angstrom": "test_references.py::test_dynamic_mask_waits_for_its_start_resolution",
    "seed": "test_references.py::test_seed_reaches_the_random_phases",
}
"""Setting → the test of its effect."""


def pytest_configure(config: Any) -> None:
    """As a plugin of pytest: disconnect the setting that the environment names."""
    name = os.environ.get(VARIABLE, "")
    if name:
        disconnect(name)


def disconnect(name: str) -> None:
    """From now on every Settings holds the default of this setting."""
    default = next(f.default for f in dataclasses.fields(Settings) if f.name == name)
    check = Settings.__post_init__

    def forget(self: Settings) -> None:
        check(self)
        object.__setattr__(self, name, default)
    Settings.__post_init__ = forget  # type: ignore[method-assign]


def status_without(name: str) -> int:
    """Exit status of pytest on the setting's test with the setting disconnected."""
    file, test = TESTS[name].split("::")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "benchmarks.faults.disconnected", "-p",
               "no:cacheprovider",               str(path_of_test(file)) + "::" + test]
    return subprocess.run(command, cwd=ROOT, env=dict(os.environ, **{VARIABLE: name}), check=False,
                          capture_output=True).returncode


def page() -> str:
    """The table of docs/reference/tests.md."""
    return table(("setting", "test of its effect"), [(f"`{name}`", f"`{test}`") for name, test in TESTS.items()])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=list(TESTS), metavar="SETTING")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    missed = []
    for name in options.settings:
        status = status_without(name)
        print(f"{name}: {'fails' if status == TESTS_FAILED else f'DOES NOT FAIL (status {status})'}", flush=True)
        missed += [name] if status != TESTS_FAILED else []
    if options.write:
        write_section("settings and their tests", page(), TESTS_PAGE)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
