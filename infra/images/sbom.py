#!/usr/bin/env python3
"""Writes what a program is made of, as CycloneDX 1.5: its crates as `Cargo.lock` has them, and what is shipped beside it.

    infra/images/sbom.py PACKAGE VERSION [PACKAGES_FILE] [--also PACKAGE]... [--go PROGRAM]... > PACKAGE.cdx.json

PACKAGES_FILE lists files of Debian's packages. --also names another crate whose program is shipped, --go a program that Go
has built: its modules are read from it.
"""

import argparse
import json
import pathlib
import re
import subprocess


def crates(packages):
    """Name, version and licence of every crate that is compiled into these packages, which are left out themselves."""
    tree = ["cargo", "tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none", "--format", "{p}|{l}"]
    for package in packages:
        tree += ["--package", package]
    lines = subprocess.run(tree, check=True, capture_output=True, text=True).stdout.splitlines()
    found = {}
    for line in lines:
        described, _, licence = line.replace(" (*)", "").partition("|")
        match = re.match(r"(\S+) v(\S+)", described)
        if match and match[1] not in packages:
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


def go(path):
    """A program that Go has built, and its modules, by the list that Go leaves in it."""
    program = pathlib.Path(path)
    text = program.read_bytes()
    modules = {(name.decode(), version.decode()) for name, version in re.findall(rb"\ndep\t([\w./~-]+)\t(v[\w.+-]+)\t", text)}
    asked = subprocess.run([path, "--version"], check=True, capture_output=True, text=True)
    version = re.search(r"\d+\.\d+\.\d+\S*", asked.stdout + asked.stderr)
    if not modules or not version:
        raise SystemExit(f"{path} does not list its modules, or not its version: is it a program that Go has built?")
    found = [{"type": "application", "name": program.name, "version": version[0]}]
    for name, number in sorted(modules):
        found.append({"type": "library", "name": name, "version": number, "purl": f"pkg:golang/{name}@{number}"})
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package")
    parser.add_argument("version")
    parser.add_argument("packages_file", nargs="?", type=pathlib.Path)
    parser.add_argument("--also", action="append", default=[], metavar="PACKAGE")
    parser.add_argument("--go", action="append", default=[], metavar="PROGRAM")
    options = parser.parse_args()
    made = crates([options.package, *options.also])
    components = [component(*key, licence) for key, licence in sorted(made.items())]
    if options.packages_file:
        components += [debian(line) for line in options.packages_file.read_text().split()]
    for program in options.go:
        components += go(program)
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": options.package, "version": options.version}},
        "components": components,
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
