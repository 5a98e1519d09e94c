"""Measurements of speed against accuracy. None is a timed test: each ends in an assertion of correctness."""
