"""Measure how the cost of a row depends on rows, categories and columns, on made-up tables of skewed frequencies.

    python tests/benchmarks/scale.py            # rows, categories, columns
    python tests/benchmarks/scale.py 50000000   # both scripts on so many rows: 10 categorical, 10 numerical columns, one epoch
    python tests/benchmarks/scale.py predict    # memory of predict on a wide frame, and milliseconds for one row at a time

Each line is one run of a script as a process: seconds for reading and for an epoch (without the first one, which builds the
graph, where there are several), and peak memory (of the process, with Python and TensorFlow, some 600 MB) beside that of the encoded
columns, 4 bytes a cell. Up to a million rows are seen three times, more once.
"""

import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
from conftest import Pair, edited


def write_table(file, rows, cardinalities, numbers):
    """Write a table in pieces: categories as often as Zipf's law has it, a target that both kinds of columns move."""
    random = np.random.default_rng(0)
    effects = [random.normal(size=cardinality) for cardinality in cardinalities]
    weights = [np.cumsum(1 / np.arange(1, cardinality + 1)) for cardinality in cardinalities]
    for begin in range(0, rows, 500_000):
        count = min(500_000, rows - begin)
        drawn = [np.searchsorted(w, random.uniform(0, w[-1], count)) for w in weights]
        values = random.integers(0, 10_000, (numbers, count)) / 100
        target = sum(e[d] for e, d in zip(effects, drawn)) + sum(values) / 100 + random.normal(size=count)
        columns = {f"c{i}": d for i, d in enumerate(drawn)} | {f"x{i}": v for i, v in enumerate(values)}
        frame = pd.DataFrame(columns | {"y": target.round(3)})
        frame.to_csv(file, mode="a" if begin else "w", header=not begin, index=False)


def batch_size(row_count):
    """Return how many rows a step of the scripts takes, of so many training rows."""
    with tempfile.TemporaryDirectory() as name:
        return Pair(name).base.choose_recipe(row_count, None, 900_000).batch_size


def run(folder, script):
    """Run a script and return its output and peak memory in bytes."""
    process = subprocess.Popen([sys.executable, f"{script}.py"], cwd=folder, stdout=subprocess.PIPE, text=True)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{script} ended with {status}")
    return said, usage.ru_maxrss * 1024


def measure(rows, cardinalities, numbers, scripts=("build_embeddings",)):
    """Print a line of the table for each script."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_table(folder / "table.csv", rows, cardinalities, numbers)
        columns = [f"c{i}" for i in range(len(cardinalities))]
        epochs = 3 if rows <= 1_000_000 else 1
        base = {"DATA_FILE": "table.csv", "TARGET_COLUMN": "y", "CATEGORICAL_COLUMNS": columns, "EPOCHS": epochs}
        full = {"NUMERICAL_COLUMNS": [f"x{i}" for i in range(numbers)], "EPOCHS": epochs}
        edits = {"build_embeddings": base, "build_embed_model": full}
        for script in edits:
            (folder / f"{script}.py").write_text(edited(script, edits[script]))
        for script in scripts:
            begin = time.perf_counter()
            said, peak = run(folder, script)
            seconds = time.perf_counter() - begin
            reading = float(re.search(r"test\n  ([\d.]+) s", said)[1])
            shown = [(int(n), float(s)) for n, s in re.findall(r"^  epoch (\d+) .*?  ([\d.]+) s", said, re.M)]
            (first, begin), (last, end) = shown[0] if len(shown) > 1 else (0, 0.0), shown[-1]
            epoch = (end - begin) / (last - first)
            step = epoch * 1e3 / math.ceil(0.8 * rows / batch_size(0.8 * rows))
            cells = len(cardinalities) + (numbers if script == "build_embed_model" else 0)
            encoded = rows * cells * 4
            print(
                f"| {script} | {rows:,} | {max(cardinalities):,} | {len(cardinalities)} + {numbers} | {reading / rows * 1e6:.1f} "
                f"| {epoch / rows * 1e6:.1f} | {step:.1f} | {seconds:.0f} "
                f"| {peak / 1e9:.2f} | {encoded / 1e9:.2f} | {peak / encoded:.2f} |",
                flush=True,
            )


# Prints seconds and peak memory of one call, then milliseconds of single rows, in a process of its own.
PREDICT = """
import resource, sys, time
import numpy as np, pandas as pd
from build_embed_model import NUMERICAL_COLUMNS, predict
rows, categories = int(sys.argv[1]), int(sys.argv[2])
random = np.random.default_rng(0)
frame = pd.DataFrame(random.normal(size=(rows, len(NUMERICAL_COLUMNS))), columns=NUMERICAL_COLUMNS)
frame["c"] = random.integers(0, categories, rows).astype(str)
predict(frame[:1])
begin = time.perf_counter()
predict(frame)
seconds, times = time.perf_counter() - begin, []
for row in range(100):
    begin = time.perf_counter()
    predict(frame[row : row + 1])
    times.append(time.perf_counter() - begin)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(f"{seconds:.1f} | {peak / 1e9:.2f} | {1e3 * np.median(times):.1f}")
"""


def measure_predict(rows, numbers, categories):
    """Print a line: what predict takes for so many rows, and for one, after training on a small table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_table(folder / "table.csv", max(2000, 2 * categories), [categories], numbers)
        columns = [f"x{i}" for i in range(numbers)]
        base = {"DATA_FILE": "table.csv", "TARGET_COLUMN": "y", "CATEGORICAL_COLUMNS": ["c"], "EPOCHS": 1}
        edits = {"build_embeddings": base, "build_embed_model": {"NUMERICAL_COLUMNS": columns, "EPOCHS": 1}}
        table = (folder / "table.csv").read_text()
        (folder / "table.csv").write_text(table.replace("c0,", "c,", 1))
        for script in edits:
            (folder / f"{script}.py").write_text(edited(script, edits[script]))
            run(folder, script)
        done = subprocess.run([sys.executable, "-c", PREDICT, str(rows), str(categories)], cwd=folder, capture_output=True, text=True)
        print(f"| {rows:,} | 1 + {numbers} | {categories:,} | {done.stdout.strip() or done.stderr[-300:]} |", flush=True)


def main(rows):
    if rows == "predict":
        print("| rows | columns | categories | s for all rows | peak, GB | ms for one row |\n|--:|--:|--:|--:|--:|--:|")
        for case in ((100_000, 400, 100), (8_000, 30, 100), (1000, 8, 200), (1000, 8, 20_000), (1000, 8, 1_000_000)):
            measure_predict(*case)
        return
    print("| script | rows | most categories | columns | s to read a million rows | s to train on them | ms a step | s in all "
          "| peak, GB | encoded, GB | ratio |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    both = ("build_embeddings", "build_embed_model")
    if rows:
        measure(rows, [100, 100, 1000, 1000, 1000, 10_000, 10_000, 10_000, 100_000, 1_000_000], 10, both)
        return
    for count in (100_000, 1_000_000, 10_000_000):
        measure(count, [100, 1000, 1000, 10_000], 4, both)
    for cardinality in (1000, 100_000, 1_000_000):
        measure(1_000_000, [cardinality, 100, 100, 100], 4)
    for columns in (4, 16, 64):
        measure(300_000, [1000] * columns, 4)


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] == ["predict"] else int(sys.argv[1]) if len(sys.argv) > 1 else None)
