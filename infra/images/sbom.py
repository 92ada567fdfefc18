#!/usr/bin/env python3
"""Writes what a program is made of, as CycloneDX 1.5: its crates as `Cargo.lock` has them, and the packages below it.

    infra/images/sbom.py PACKAGE VERSION [PACKAGES_FILE] > PACKAGE.cdx.json
"""

import json
import pathlib
import re
import subprocess
import sys


def crates(package):
    """Name, version and licence of every crate that is compiled into a package."""
    tree = ["cargo", "tree", "--locked", "--offline", "--package", package, "--edges", "normal", "--prefix", "none", "--format", "{p}|{l}"]
    lines = subprocess.run(tree, check=True, capture_output=True, text=True).stdout.splitlines()
    found = {}
    for line in lines:
        described, _, licence = line.replace(" (*)", "").partition("|")
        match = re.match(r"(\S+) v(\S+)", described)
        if match:
            found[match.groups()] = licence
    return found


def component(name, version, licence):
    entry = {"type": "library", "name": name, "version": version, "purl": f"pkg:cargo/{name}@{version}"}
    if licence:
        entry["licenses"] = [{"expression": licence.replace("/", " OR ")}]
    return entry


def debian(text):
    """A package of Debian from the name of its file."""
    name, version, architecture = text.removesuffix(".deb").split("_")
    return {"type": "library", "name": name, "version": version, "purl": f"pkg:deb/debian/{name}@{version}?arch={architecture}"}


def main():
    package, version = sys.argv[1:3]
    components = [component(*key, licence) for key, licence in sorted(crates(package).items()) if key[0] != package]
    if len(sys.argv) > 3:
        components += [debian(line) for line in pathlib.Path(sys.argv[3]).read_text().split()]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": package, "version": version}},
        "components": components,
    }
    json.dump(document, sys.stdout, indent=1)
    print()


main()
