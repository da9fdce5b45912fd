"""Are the nearest categories the right ones? Planted structures, three measures of nearness, and the flights.

    python tests/benchmarks/nearest.py

A column of 100 categories, the most frequent of fifty times the rows of the rarest, whose effect depends on a second
column: they lie on a ring, on a plane of two factors, or along a line of one. 20,000 rows, noise of a third of the signal.
Of the four nearest categories by each measure: the share that is among the eight that are really nearest (chance: 8 %).

On the flights, of all categories of 20 rows or more: of the four nearest aeroplanes the share that is of one airline, or of
one model, though either is a column of its own; how far the mean air times of an airport and of the four nearest are apart.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from accuracy import SCRIPTS, TOP, edit_copies, run

sys.path.append(str(TOP))

from build_embeddings import ALONE, lay_out
from sklearn.metrics import pairwise
from tables import read_csv, write_csv

COUNT, ROWS = 100, 20_000
SETTINGS = {"TARGET_COLUMN": "y", "TASK": "regression", "CATEGORICAL_COLUMNS": ["c", "other"], "NUMERICAL_COLUMNS": []}
MEASURES = {
    "distance (as it is)": lambda vectors, counts: pairwise.euclidean_distances(vectors),
    "cosine": lambda vectors, counts: pairwise.cosine_distances(vectors),
    "cosine around the mean by count": lambda vectors, counts: pairwise.cosine_distances(
        vectors - np.average(vectors, axis=0, weights=counts)),
}


def plant(kind, random):
    """Return the places of the categories, (100, 2), and a table."""
    angles = random.uniform(0, 2 * np.pi, COUNT)
    places = {"ring": np.stack([np.cos(angles), np.sin(angles)], axis=1), "two factors": random.normal(size=(COUNT, 2)),
              "one factor": np.stack([random.normal(size=COUNT), np.zeros(COUNT)], axis=1)}[kind]
    share = np.geomspace(50, 1, COUNT)
    c, other = random.choice(COUNT, ROWS, p=share / share.sum()), random.integers(0, 12, ROWS)
    turns = 2 * np.pi * np.arange(12) / 12 if kind != "one factor" else np.zeros(12)
    signal = places[c, 0] * np.cos(turns[other]) + places[c, 1] * np.sin(turns[other])
    y = signal + random.normal(scale=signal.std() / 3, size=ROWS)
    return places, pd.DataFrame({"c": c, "other": other, "y": y}).astype({"c": str, "other": str})


def nearest(distances, count):
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1)[:, :count]


def real(seed):
    """Return the RMSE of the flights' categories alone, and what the top of this file says, of the nearest and of any two."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = write_csv("flights", folder)
        edit_copies(folder, {**settings, "SEED": seed})
        run(folder, SCRIPTS[0])
        test = json.loads((folder / "embeddings/run.json").read_text())["test"]
        near = {}
        for column in ("tailnum", "dest"):
            vocabulary = pd.read_csv(folder / f"embeddings/{column}.csv", keep_default_na=False)[1:]
            known = ((vocabulary["count"] >= 20) & (vocabulary["category"] != "")).to_numpy()
            vectors = np.load(folder / f"embeddings/{column}.npy")[1:][known]
            near[column] = vocabulary["category"].to_numpy()[known], nearest(pairwise.euclidean_distances(vectors), 4)
        flights = read_csv(settings)
    (planes, near_planes), (airports, near_airports) = near.values()
    figures, of_any_two = [], []
    for column in ("carrier", "model"):
        most = flights.groupby("tailnum")[column].agg(lambda cells: cells.mode()[0])[planes].to_numpy()
        figures.append((most[near_planes] == most[:, None]).mean())
        of_any_two.append((most == most[:, None]).mean())
    times = flights.groupby("dest")["air_time"].mean()[airports].to_numpy()
    figures.append(np.abs(times[near_airports] - times[:, None]).mean())
    of_any_two.append(np.abs(times - times[:, None]).mean())
    return test[ALONE]["RMSE"], figures, of_any_two


def main():
    print("| structure | " + " | ".join(MEASURES) + " | two directions hold | one holds |\n|---|" + "--:|" * (len(MEASURES) + 2))
    for kind in ("ring", "two factors", "one factor"):
        figures = []
        for seed in range(3):
            places, table = plant(kind, np.random.default_rng(seed))
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                table.to_csv(folder / "table.csv", index=False)
                edit_copies(folder, {**SETTINGS, "DATA_FILE": "table.csv", "SEED": seed})
                run(folder, SCRIPTS[0])
                vectors = np.load(folder / "embeddings/c.npy")[1:]
                vocabulary = pd.read_csv(folder / "embeddings/c.csv")[1:]
            right = nearest(pairwise.euclidean_distances(places[vocabulary["category"].astype(int)]), 8)
            found = [nearest(measure(vectors, vocabulary["count"]), 4) for measure in MEASURES.values()]
            shares = [np.mean([len({*a} & {*b}) / 4 for a, b in zip(near, right)]) for near in found]
            _, share, _ = lay_out(vectors)
            figures.append([*shares, share.sum(), share[0]])
        print(f"| {kind} | " + " | ".join(f"{figure:.0%}" for figure in np.mean(figures, axis=0)) + " |", flush=True)
    line = "| {} | {} | {:.0%} | {:.0%} | {:.1f} min |"
    print("\n| flights | RMSE alone | near aeroplanes of one airline | of one model | near airports' gap |\n|---|--:|--:|--:|--:|")
    for seed in range(3):
        error, figures, of_any_two = real(seed)
        print(line.format(f"seed {seed}", f"{error:.3f}", *figures), flush=True)
    print(line.format("any two", "", *of_any_two))


if __name__ == "__main__":
    main()
