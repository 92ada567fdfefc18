"""Where a mesh on this machine answers: what `continuum up` leaves in its data folder."""

from __future__ import annotations

import json
import os
import pathlib
from dataclasses import dataclass

# The folder of `continuum up`, where neither an argument nor the environment names another.
DATA_DIR = ".continuum"


class NoMeshError(Exception):
    """No mesh runs with a data folder."""


def data_dir(path: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """The data folder: the one given, else $CONTINUUM_DATA_DIR, else `.continuum` in the current folder."""
    return pathlib.Path(path or os.environ.get("CONTINUUM_DATA_DIR") or DATA_DIR)


def text(folder: pathlib.Path, name: str) -> str:
    """A file of a running mesh, without the white space around it."""
    try:
        return (folder / name).read_text().strip()
    except FileNotFoundError:
        raise NoMeshError(f"no mesh runs with the data folder {folder}; start one with `continuum up`") from None
    except OSError as error:
        raise NoMeshError(f"{folder / name} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class Endpoints:
    """Addresses of a mesh, and the file with the key of the identity `person`."""

    nats: str
    person_seed_file: str
    zenoh: str
    clusters: tuple[str, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str] | None = None) -> Endpoints:
        """Those of the mesh that runs with a data folder."""
        folder = data_dir(path)
        try:
            found = json.loads(text(folder, "endpoints.json"))
            return cls(found["nats"], found["person_seed_file"], found["zenoh"], tuple(found["clusters"]))
        except (ValueError, KeyError, TypeError) as error:
            raise NoMeshError(f"{folder / 'endpoints.json'} is not what `continuum up` writes: {error}") from error
