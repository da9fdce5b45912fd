"""The two scripts against gradient boosting: eight tables, three seeds, the same training, validation and test rows.

    python tests/benchmarks/accuracy.py [TABLE ...]

Edited copies of the scripts are run as a user would run them. Every figure is written to accuracy.csv beside this file as
soon as it is known; a figure of the same version of the scripts is not computed again. The boosters' figures are kept in
boosters.csv. At the end the table for README.md is printed.
"""

import ast
import csv
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]
sys.path.append(str(TOP))

from boosters import BOOSTERS_FILE, SEEDS, fit_boosters, split_table  # noqa: E402
from tables import TABLES, read_csv, write_csv  # noqa: E402

ACCURACY_FILE = HERE / "accuracy.csv"
SCRIPTS = ["build_embeddings.py", "build_embed_model.py"]
FIELDS = ["table", "seed", "model", "metric", "value", "auc", "seconds", "scripts", "date"]
ALONE, FULL = "categorical columns alone (build_embeddings.py)", "embeddings + numerical columns"

# What stands in place of load_embedding's weights, to see what the first script is worth: a fresh layer's.
RANDOM_START = """
import build_embed_model as script, numpy as np
load = script.load_embedding
def load_random(column, run):
    weights, *others = load(column, run)
    return np.random.default_rng(script.base.SEED).uniform(-0.05, 0.05, weights.shape).astype("float32"), *others
script.load_embedding = load_random
script.main()
"""
VARIANTS = {  # model's name: (TRAIN_EMBEDDINGS, what Python runs)
    "fine-tuned": (True, ["build_embed_model.py"]),
    "random start": (True, ["-c", RANDOM_START]),
    "frozen": (False, ["build_embed_model.py"]),
}


def edit_copies(folder, settings):
    """Copy the scripts to a folder with other values in their edit blocks, as a user would edit them."""
    for script in SCRIPTS:
        source = (TOP / script).read_text(encoding="utf-8")
        lines = source.splitlines(keepends=True)
        for node in reversed(ast.parse(source).body):
            name = node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else None
            if name in settings and not (script == SCRIPTS[1] and name == "CATEGORICAL_COLUMNS"):
                lines[node.lineno - 1 : node.end_lineno] = [f"{name} = {settings[name]!r}\n"]
        (folder / script).write_text("".join(lines), encoding="utf-8")


def run(folder, *command):
    """Run Python in a folder and return its wall time in seconds."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return time.perf_counter() - start


def fit_pair(settings, table, seed, version):
    """Run both scripts, with the first seed for every start of the embeddings; write each figure to ACCURACY_FILE."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        edit_copies(folder, {**settings, "SEED": seed})
        first = run(folder, SCRIPTS[0])
        for model, (trainable, command) in list(VARIANTS.items())[: None if seed == SEEDS[0] else 1]:
            edit_copies(folder, {**settings, "SEED": seed, "TRAIN_EMBEDDINGS": trainable})
            seconds = run(folder, *command)
            report = json.loads((folder / "embeddings/run.json").read_text(encoding="utf-8"))["test"]
            add(table, seed, model, report[FULL], first + seconds, version)
        add(table, seed, "categorical columns alone", report[ALONE], first, version)


def add(table, seed, model, figures, seconds, version):
    """Append a line to ACCURACY_FILE, and show it."""
    (metric, value), auc = next(iter(figures.items())), figures.get("AUC", "")
    line = [table, seed, model, metric, f"{value:.6f}", auc and f"{auc:.6f}", f"{seconds:.1f}", version, date.today()]
    is_new = not ACCURACY_FILE.exists()
    with ACCURACY_FILE.open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([FIELDS, line] if is_new else [line])
    print(*line, sep="  ", flush=True)


def summary():
    """Print for every table the mean and spread over the seeds of the newest figures, and the ratio to the best booster."""
    lines = pd.concat([pd.read_csv(BOOSTERS_FILE), pd.read_csv(ACCURACY_FILE)])
    lines = lines.drop_duplicates(["table", "seed", "model"], keep="last")
    print("| table | model | mean | spread | AUC | seconds | ratio to best booster |\n|---|---|--:|--:|--:|--:|--:|")
    for table, group in lines.groupby("table", sort=False):
        means = group.groupby("model", sort=False).agg({"value": ["mean", "std"], "auc": "mean", "seconds": "mean"})
        means.columns = ["mean", "std", "auc", "seconds"]
        values = group.pivot(index="seed", columns="model", values="value")
        boosters = values.filter(regex="LightGBM|CatBoost|Hist")
        for model, row in means.iterrows():
            best = boosters[values[model].notna()].mean(skipna=False).min()  # on the seeds of this model
            auc = "" if pd.isna(row.auc) else f"{row.auc:.3f}"
            print(f"| {table} | {model} | {row['mean']:.4g} | {row['std']:.2g} | {auc} | {row.seconds:.0f} | {row['mean'] / best:.3f} |")


def main(tables):
    version = hashlib.sha256(b"".join((TOP / script).read_bytes() for script in SCRIPTS)).hexdigest()[:8]
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            for table in tables:
                settings = write_csv(table, folder)
                fit_boosters(*split_table(read_csv(settings), seed), settings, table, seed)
                known = ACCURACY_FILE.exists() and pd.read_csv(ACCURACY_FILE).query(
                    "table == @table and seed == @seed and scripts == @version").shape[0]
                if not known:
                    fit_pair(settings, table, seed, version)
    summary()


if __name__ == "__main__":
    main(sys.argv[1:] or list(TABLES))
