"""Where the time of a training step goes, and how it compares: to bare matrix products, to PyTorch.

    pip install torch --index-url ...   # optional: the CPU build; without it that line is left out
    python tests/benchmarks/speed.py          # a training step
    python tests/benchmarks/speed.py flights  # both scripts on the flights, stage by stage, and the boosters' time

A step: the network of build_embed_model.py at its defaults, from a random start, on rows of the flights; medians of
five repeats, taken in turn, in one process and with the same threads. The flights: once each; a booster's time to its best is
the share of its time that its best round takes, ours the time to the first epoch that is as good on the validation rows.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import build_embed_model as script
import build_embeddings as base
import keras
import numpy as np
import pandas as pd
import tensorflow as tf

STEPS = 128


def products(shapes, batch):
    """Return a function that makes the matrix products of STEPS steps: forward, and two backward for each layer."""
    random = np.random.default_rng(0)
    weights = [tf.constant(random.normal(size=shape).astype("float32")) for shape in shapes]
    inputs = [tf.constant(random.normal(size=(batch, rows)).astype("float32")) for rows, _ in shapes]
    outputs = [tf.constant(random.normal(size=(batch, columns)).astype("float32")) for _, columns in shapes]

    @tf.function
    def step():
        total = 0.0
        for x, w, y in zip(inputs, weights, outputs):
            for product in (x @ w, tf.matmul(y, w, transpose_b=True), tf.matmul(x, y, transpose_a=True)):
                total += product[0, 0]
        return total

    return lambda: [step() for _ in range(STEPS)]


def torch_steps(widths, batch, ids, numbers, target, dims, sizes, pairs):
    """Return a function that takes STEPS steps of the same network in PyTorch, ladder and pairs included; None without PyTorch."""
    sys.modules.setdefault("triton", None)  # for GPUs only, and the CUDA build crashes on it beside TensorFlow
    try:
        import torch
    except ImportError:
        return None
    tables = torch.nn.ModuleList(torch.nn.Embedding(size, d) for size, d in zip(sizes, dims))
    squeeze = torch.nn.ModuleList(torch.nn.Linear(d, 8, bias=False) if d > 8 else torch.nn.Identity() for d in dims)
    columns = numbers.shape[1]
    edges, bends = torch.rand(columns, 64), torch.nn.Parameter(torch.randn(columns, 64, 12) / 8)
    first = sum(min(d, 8) for d in dims) + columns * 14
    dense = torch.nn.Sequential(torch.nn.Linear(first, widths[0]), torch.nn.ReLU(), torch.nn.Linear(*widths), torch.nn.ReLU(), torch.nn.Linear(widths[1], 1))
    (left, right), count = np.transpose(pairs), 2**18 - 5
    effects, random = torch.nn.Embedding(count, 1), np.random.default_rng(0)
    torch.nn.init.zeros_(effects.weight)
    factors, offsets = (torch.from_numpy(random.integers(1, 10_000, len(left))) for _ in range(2))
    parameters = [*effects.parameters(), *tables.parameters(), *squeeze.parameters(), *dense.parameters(), bends]
    optimizer = torch.optim.AdamW(parameters, 1e-3, fused=True)
    ids, numbers, target = (torch.from_numpy(values) for values in (ids, numbers, target))

    def steps():
        order = torch.randperm(len(ids))[: STEPS * batch].reshape(STEPS, batch)
        for rows in order:
            i, x = ids[rows].long(), numbers[rows]
            climbed = ((x[:, :, None] - edges) * 64).clamp(0, 1)
            bent = torch.einsum("rcs,csf->rcf", climbed, bends).relu().flatten(1)
            features = [s(t(i[:, k])) for k, (t, s) in enumerate(zip(tables, squeeze))]
            added = effects((i[:, left] * factors + i[:, right] + offsets) % count).sum(1)
            loss = ((dense(torch.cat([*features, bent, x, x], 1)) + added - target[rows]) ** 2).mean().log() / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    torch.set_num_threads(2)
    return steps


def watch(folder, script):
    """Run a script and return [(seconds since its start, line)] for what it prints, its end as an empty line."""
    start, lines = time.perf_counter(), []
    with subprocess.Popen([sys.executable, "-u", script], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for line in process.stdout:
            lines.append((time.perf_counter() - start, line.rstrip()))
    assert process.returncode == 0, script
    return [*lines, (time.perf_counter() - start, "")]


def run_flights():
    """Print the seconds of both scripts' stages, and of each booster, to its end and to its best validation error."""
    from accuracy import SCRIPTS, edit_copies
    from boosters import BOOSTERS, PATIENCE, STOPPED, split_table
    from sklearn.metrics import root_mean_squared_error
    from tables import read_csv, write_csv

    stages = ["imports", "reading, encoding", "training", "report, saving"]
    marks = [("Reading", "Training", "Test"), ("Loading", "Training", "  waiting")]  # how the first line after each stage begins
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = write_csv("flights", folder)
        edit_copies(folder, settings)
        runs = [watch(folder, file) for file in SCRIPTS]
    print("| script |", " | ".join(stages), "| waiting for boosting in it | in all |\n|---|" + "--:|" * (len(stages) + 2))
    for file, lines, patterns in zip(SCRIPTS, runs, marks):
        times = [*(next(t for t, line in lines if line.startswith(begin)) for begin in patterns), lines[-1][0]]
        boosting = [t for t, line in lines if line.startswith(("  waiting", "Test figures"))]
        print(f"| {file} |", " | ".join(f"{s:.1f}" for s in np.diff([0, *times])), f"| {sum(np.diff(boosting)):.1f} | {lines[-1][0]:.1f} |")
    print("\n".join(line for _, line in runs[1][-8:]))
    epochs = [(t, float(found[1])) for t, line in runs[1] if (found := re.search(r"^  epoch .* RMSE (\S+)", line))]
    before = runs[0][-1][0]

    train, validation, _ = split_table(read_csv(settings), base.SEED)
    features = [part[settings["CATEGORICAL_COLUMNS"] + settings["NUMERICAL_COLUMNS"]] for part in (train, validation, validation)]
    targets = [part[settings["TARGET_COLUMN"]].to_numpy() for part in (train, validation)]
    print("| booster | s to its end | s to its best | its best validation RMSE | s of both scripts to that |\n|---|--:|--:|--:|--:|")
    for name, most in (("LightGBM 127 leaves", STOPPED["n_estimators"]), ("CatBoost", 1000)):
        start = time.perf_counter()
        answers, best = BOOSTERS[name][0](features, targets, settings, base.SEED)
        seconds, error = time.perf_counter() - start, root_mean_squared_error(targets[1], answers)
        ours = next((f"{before + t:.0f}" for t, value in epochs if value <= error), "never")
        print(f"| {name} | {seconds:.0f} | {seconds * best / min(most, best + PATIENCE):.0f} | {error:.3f} | {ours} |", flush=True)


def main():
    random = np.random.default_rng(0)
    os.chdir(Path(base.__file__).parent)  # where DATA_FILE is
    data = base.load_rows(script.CATEGORICAL_COLUMNS, script.NUMERICAL_COLUMNS)
    rows, target = data.training, data.target
    vocabularies = base.build_vocabularies(data.table[script.CATEGORICAL_COLUMNS], rows)
    ids, numbers = base.to_ids(data.table, vocabularies), data.table
    sizes = [(len(vocabulary), base.embedding_dim(len(vocabulary) - 1)) for vocabulary in vocabularies.values()]
    matrices = [random.uniform(-0.05, 0.05, size).astype("float32") for size in sizes]
    recipe = base.choose_recipe(len(rows), None, 3_000_000)
    pairs = script.pairs_that_repeat(ids, data)
    frames = ids, numbers, pd.DataFrame(index=ids.index)  # so large a table has no mean targets
    model = script.build_model(matrices, frames, pairs, None, data, recipe, validation_error=0.01)
    base.compile_model(model, recipe, len(rows))
    few = rows[: STEPS * recipe.batch_size].reshape(STEPS, recipe.batch_size)
    batches = base.feed(base.gather([ids, numbers], few), data, few, recipe.members)
    batch = base.gather([ids.astype("int32"), numbers.astype("float32")], few.ravel())
    features = next(layer for layer in model.layers if isinstance(layer, keras.layers.Dense) and layer.units == recipe.widths[0]).kernel.shape[0]
    squeezed = [(d.shape[1], 8) for d in matrices if d.shape[1] > 8]
    shapes = [(features, recipe.widths[0]), recipe.widths, (recipe.widths[1], 1), *squeezed]
    sizes, dims = np.transpose([weights.shape for weights in matrices]).tolist()
    def fit():
        model.fit(**batches, shuffle=False, verbose=0)

    def ladder():
        return [bend() for _ in range(STEPS)]

    columns = len(numbers.columns)
    kernel = tf.constant(random.normal(size=(columns, 64, 12)).astype("float32"))
    climbed = tf.constant(random.normal(size=(columns, recipe.batch_size, 64)).astype("float32"))
    bent = tf.constant(random.normal(size=(columns, recipe.batch_size, 12)).astype("float32"))
    bend = tf.function(lambda: tf.reduce_sum((climbed @ kernel)[:, 0, 0]) + tf.reduce_sum(tf.matmul(climbed, bent, transpose_a=True)[:, 0, 0]))
    what = {
        "training, Keras": fit,
        "bare products of the dense layers": products(shapes, recipe.batch_size),
        "bare products of the numbers' ladders": ladder,
        "training, PyTorch": torch_steps(recipe.widths, recipe.batch_size, *batch, target[few.ravel(), None], dims, sizes, pairs),
    }
    what = {name: function for name, function in what.items() if function}
    seconds = {name: [] for name in what}
    for repeat in range(6):  # the first one warms up
        for name, function in what.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    print(f"| what | ms a step of {recipe.batch_size} rows | rows a second |\n|---|--:|--:|")
    for name, times in seconds.items():
        median = np.median(times[1:]) / STEPS
        print(f"| {name} | {median * 1e3:.2f} | {recipe.batch_size / median:,.0f} |")


if __name__ == "__main__":
    run_flights() if sys.argv[1:] else main()
