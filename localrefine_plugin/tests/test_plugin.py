"""What `scipion tests` finds: the protocol is there, its form opens, and the engine answers.

The suite proper is in the folder tests/ of the repository.
"""
import json
import subprocess
import sys

from pyworkflow.tests import BaseTest, setupTestProject

from localrefine_plugin.protocols import ProtLocalFindBodies, ProtLocalRefine


class TestLocalRefinePlugin(BaseTest):
    """A minute-long smoke test of an installation."""

    @classmethod
    def setUpClass(cls):
        setupTestProject(cls)

    def test_protocol_opens_and_asks_for_its_inputs(self):
        errors = "\n".join(self.newProtocol(ProtLocalRefine).validate())
        for label in ("Particles", "Volume with half-maps", "Mask of the sub-volume"):
            self.assertIn(label, errors)

    def test_find_bodies_opens_and_asks_for_its_inputs(self):
        errors = "\n".join(self.newProtocol(ProtLocalFindBodies).validate())
        for label in ("Particles", "Volume with half-maps"):
            self.assertIn(label, errors)

    def test_engine_starts_and_knows_the_settings_of_the_form(self):
        output = subprocess.check_output([sys.executable, "-m", "localrefine_plugin.engine", "settings"])
        names = {entry["name"] for entry in json.loads(output)}
        self.assertIn("prior_rotation_deg", names)
