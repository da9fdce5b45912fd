"""Draw what build_embeddings.py learned of airports beside the map that it was never shown: tests/picture.png.

    python tests/make_picture.py

Left: the place of each airport as read from its vector. A straight-line rule (ridge regression) from vectors to
coordinates is fitted to all *other* airports and then asked for this one, so that no airport helps to place itself.
Right: the map. All airports of the 48 states to which at least MIN_ROWS training rows fly.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into a file, without a screen
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.spatial import ConvexHull
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import LeaveOneOut, cross_val_predict

ROOT = Path(__file__).parent.parent
MIN_ROWS = 300
NEW_YORK = (-73.9, 40.7)  # degrees east, degrees north
REGIONS = {  # name: west, east, south, north in degrees, colour; the first that an airport lies in is its own
    "Pacific North-west": (-130, -116, 42, 50, "#0b8457"),
    "California": (-130, -117, 32, 42, "#e08e00"),
    "Rockies and desert": (-117, -103, 30, 50, "#a0522d"),
    "Texas": (-107, -94, 25, 34, "#c2255c"),
    "Florida": (-86, -79, 24, 31, "#e8590c"),
    "Great Lakes": (-94, -81, 41, 48, "#1c7ed6"),
    "New England": (-73.4, -66, 41, 48, "#5f3dc4"),
    "": (-130, -66, 24, 50, "#868e96"),
}


def load_airports():
    """Return the vectors of the airports (airports, dimension) and a frame of their names, counts and coordinates."""
    airports = pd.read_csv(ROOT / "embeddings/dest.csv", dtype={"category": str}, keep_default_na=False)
    weights = np.load(ROOT / "embeddings/dest.npy")
    airports = airports.join(pd.read_csv(ROOT / "data/airports.csv", keep_default_na=False).set_index("faa"), on="category")
    shown = (airports["count"] >= MIN_ROWS) & (airports["lon"] > -130)
    return weights[shown], airports[shown].reset_index(drop=True)


def region_of(lon, lat):
    """Return the name of the region in which a place lies."""
    return next(name for name, (west, east, south, north, _) in REGIONS.items() if west < lon < east and south < lat < north)


def draw(axes, places, airports, title):
    """Draw airports at places (airports, 2), each region in its colour with its outline, the busiest by their codes."""
    regions = np.array([region_of(*place) for place in airports[["lon", "lat"]].to_numpy()])
    for name, (*_, colour) in REGIONS.items():
        members = places[regions == name]
        if name and len(members) > 2:
            outline = members[ConvexHull(members).vertices]
            axes.fill(*outline.T, color=colour, alpha=0.18, linewidth=0, zorder=0)
        axes.scatter(*members.T, color=colour, s=36, edgecolor="white", linewidth=0.7, zorder=2, label=name)
    named = []
    for i, place in enumerate(places):  # the most frequent comes first
        if all((abs(place - places[j]) > (2.6, 1.1)).any() for j in named):
            named.append(i)
            axes.annotate(airports["category"][i], place, xytext=(4, 3), textcoords="offset points", fontsize=8.5, zorder=3)
    axes.set(title=title, xticks=[], yticks=[], aspect=1 / np.cos(np.radians(39)))
    axes.spines[:].set_color("#dddddd")


def main():
    vectors, airports = load_airports()
    places = airports[["lon", "lat"]].to_numpy()
    rule = RidgeCV(np.logspace(-4, 3, 22), alpha_per_target=True)
    read = cross_val_predict(rule, vectors, places, cv=LeaveOneOut())
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 4.9), sharex=True, sharey=True, layout="constrained")
    draw(left, read, airports, "Read from the vectors, each airport by a rule that never saw it")
    draw(right, places, airports, "The map")
    right.plot(*NEW_YORK, marker="*", color="black", markersize=14, zorder=4)
    right.annotate("New York", NEW_YORK, xytext=(9, -9), textcoords="offset points", fontsize=9, weight="bold")
    handles, names = right.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=7, frameon=False)
    figure.savefig(Path(__file__).with_name("picture.png"), dpi=100)
    for i, name in enumerate(["longitude", "latitude"]):
        agreement = np.corrcoef(read[:, i], places[:, i])[0, 1]
        print(f"{name}: correlation {agreement:.2f} between vectors and map, {len(places)} airports")
    east, north = ((places - NEW_YORK) * [np.cos(np.radians(39)), 1]).T
    agreement = abs(np.corrcoef(PCA(1).fit_transform(vectors)[:, 0], np.hypot(east, north))[0, 1])
    print(f"distance from New York: correlation {agreement:.2f} with the vectors' first principal component")


if __name__ == "__main__":
    main()
