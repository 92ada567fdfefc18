#!/usr/bin/env python3
"""Shuttle, as river's wheel ships it, in stream order: its rows, and the scores of river's own detectors.

    shuttle.py OUT ROWS

Writes OUT/shuttle.csv (nine features and the label a line) and OUT/<detector>.txt (one score a line, taken before the
row is learned, features scaled to 0..1 by the range seen so far), and prints one JSON object a detector with its time.
"""

import json
import pathlib
import sys
import time

from river import anomaly, datasets, preprocessing


def main():
    out, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    rows = list(datasets.Shuttle().take(count))
    with open(out / "shuttle.csv", "w", encoding="utf-8") as file:
        for features, label in rows:
            file.write(",".join(str(float(value)) for value in features.values()) + f",{int(label)}\n")
    detectors = {
        "river HalfSpaceTrees (10 trees)": anomaly.HalfSpaceTrees(seed=42),
        "river HalfSpaceTrees (25 trees)": anomaly.HalfSpaceTrees(n_trees=25, seed=42),
        "river LODA": anomaly.LODA(seed=42),
    }
    for number, (name, detector) in enumerate(detectors.items()):
        model = preprocessing.MinMaxScaler() | detector
        scores, begun = [], time.perf_counter()
        for features, _ in rows:
            scores.append(model.score_one(features))
            model.learn_one(features)
        seconds = time.perf_counter() - begun
        file = f"scores-{number}.txt"
        (out / file).write_text("\n".join(repr(float(score)) for score in scores), encoding="utf-8")
        print(json.dumps({"name": name, "file": file, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
