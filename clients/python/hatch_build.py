"""Puts what is generated into the wheel: messages out of `proto/`, REST calls and types out of `schemas/openapi.json`."""

import pathlib
import sys
import tempfile

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import generate  # noqa: E402


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version, build_data):
        self.folder = tempfile.TemporaryDirectory()
        out = pathlib.Path(self.folder.name)
        generate.everything(pathlib.Path(self.root).parent.parent, out)
        for path in sorted(path for path in out.rglob("*") if path.is_file()):
            build_data["force_include"][str(path)] = str(path.relative_to(out))

    def finalize(self, version, build_data, artifact_path):
        self.folder.cleanup()
