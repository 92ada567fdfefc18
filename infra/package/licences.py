#!/usr/bin/env python3
"""Writes the licences of all crates that are compiled into programs, each text once, with the crates that it is for.

    infra/package/licences.py PACKAGE... > LICENCES

The texts are the files that the crates' authors ship. A crate without one is listed with the expression that it declares.
"""

import json
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "images"))
from sbom import crates  # noqa: E402

# How files are named that hold a licence or a notice.
NAMES = ("licen", "copying", "notice", "copyright", "unlicense")


def texts(folder):
    """The licences and notices in a crate's folder."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name.lower().startswith(NAMES))
    return [path.read_text(errors="replace").replace("\r\n", "\n").strip() for path in files]


def main():
    packages = sys.argv[1:]
    metadata = ["cargo", "metadata", "--locked", "--offline", "--format-version", "1"]
    described = json.loads(subprocess.run(metadata, check=True, capture_output=True, text=True).stdout)["packages"]
    folders = {(p["name"], p["version"]): pathlib.Path(p["manifest_path"]).parent for p in described if p["source"]}
    by_text, without = {}, []
    for (name, version), licence in sorted(crates(packages).items()):
        if (name, version) not in folders:
            continue
        found = texts(folders[name, version])
        for text in found:
            by_text.setdefault(text, []).append(f"{name} {version}")
        if not found:
            without.append(f"{name} {version}: {licence}")
    print(f"Licences of the third-party crates that {', '.join(packages)} are compiled from.\n")
    for text, users in by_text.items():
        print("=" * 80 + "\n" + ", ".join(users) + "\n" + "-" * 80 + "\n" + text + "\n")
    print("=" * 80 + "\nThese crates ship no text; they declare:\n" + "\n".join(without))


if __name__ == "__main__":
    main()
