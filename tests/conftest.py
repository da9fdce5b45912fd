"""What the tests share: copies of the two scripts with an edited block, as a user would make them, and how to run them."""

import ast
import contextlib
import functools
import gc
import itertools
import os
import re
import sys
import types
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before scikit-learn: its threads only get in each other's way on tables this small
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pandas as pd
import pytest
import sklearn.ensemble
import tensorflow as tf

gc.freeze()  # TensorFlow's own objects are never garbage: to look through them again and again takes minutes of the suite
ROOT = Path(__file__).resolve().parents[1]
BASE_SETTINGS = {"DATA_FILE": "table.csv", "TARGET_COLUMN": "y", "CATEGORICAL_COLUMNS": ["c", "d"], "EPOCHS": 1}
MODEL_SETTINGS = {"NUMERICAL_COLUMNS": ["x"], "EPOCHS": 1}


@functools.cache
def source(script):
    """Return a script's text, read once: all tests of a session speak of one version."""
    return (ROOT / f"{script}.py").read_text(encoding="utf-8")


def edited(script, settings):
    """Return a script's text with the values of these names of its edit block replaced."""
    text = source(script)
    lines, settings = text.splitlines(keepends=True), dict(settings)
    for node in reversed(ast.parse(text).body):  # from the end, so that line numbers stay true
        name = node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else None
        if name in settings:
            lines[node.lineno - 1 : node.end_lineno] = [f"{name} = {settings.pop(name)!r}\n"]
    assert not settings, f"{script}.py has no line for {list(settings)}"
    return "".join(lines)


def made_up(rows=300, seed=0):
    """Return a table with planted effects: y = 3 * (the digit in c) + x + a little noise; d says nothing."""
    random = np.random.default_rng(seed)
    digit, x = random.integers(0, 6, rows), random.normal(size=rows)
    y = 3 * digit + x + random.normal(scale=0.1, size=rows)
    x[::10] = np.nan
    return pd.DataFrame({"c": [f"k{i}" for i in digit], "d": random.choice(["left", "right"], rows), "x": x, "y": y})


def rows_of(base, **known):
    """Return the rows as load_rows does, with these fields; the others are None, the weights 1."""
    size = len(known.get("target", known["training"]))
    return base.Data(**{**dict.fromkeys(base.Data._fields), "weights": np.ones(size, "float32"), **known})


class Pair:
    """A folder with a table and edited copies of both scripts, which are imported from there as fresh modules."""

    def __init__(self, folder, table=None, base=(), model=()):
        self.folder, self.embeddings, self.table = Path(folder), Path(folder) / "embeddings", table
        self.folder.mkdir(parents=True, exist_ok=True)
        if table is not None:
            self.write("table.csv", table.to_csv(index=False))
        self.edit(base, model)

    def write(self, name, content):
        """Write a file, bytes or text as it is, into the folder."""
        (self.folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    def edit(self, base=(), model=()):
        """Make new copies of both scripts with these settings and import them; one step or two where nothing is to be learned."""
        steps = {} if "EPOCHS" in {**dict(base), **dict(model)} else {"BATCH_SIZE": 256}
        self.base = self._import("build_embeddings", {**BASE_SETTINGS, **steps, **dict(base)})
        self.model = self._import("build_embed_model", {**MODEL_SETTINGS, **dict(model)})

    def _import(self, script, settings):
        file = self.folder / f"{script}.py"
        file.write_text(edited(script, settings), encoding="utf-8")
        module = sys.modules[script] = types.ModuleType(script)  # the second script finds the copy of the first here
        module.__file__ = str(file)
        exec(compile(file.read_text(encoding="utf-8"), file, "exec"), module.__dict__)  # no stale .pyc
        return module

    def call(self, function, *arguments):
        """Call a function of either script in the folder."""
        with contextlib.chdir(self.folder):
            return function(*arguments)

    def run_base(self):
        self.run_script(self.base)

    def run_model(self):
        self.run_script(self.model)

    def run_script(self, script):
        """Call what the guard of a script calls."""
        # Layers get the same automatic names in every run, as in a process of their own; to collect garbage takes a second
        keras.backend.clear_session(free_memory=False)
        self.call(self.base.run_script, script.main)

    def run(self):
        self.run_base()
        self.run_model()
        return self

    def predict(self, frame):
        return self.call(self.model.predict, frame)

    def embed(self, frame):
        return self.call(self.model.embed, frame)

    def test_rows(self, order=None):
        """Return which rows of the table are test rows, as a truth value for each."""
        return self.base.split_rows(len(self.table), order) == self.base.TEST

    def saved(self):
        """Return the bytes of every file in embeddings/ by path."""
        found = {str(file.relative_to(self.embeddings)): file for file in self.embeddings.rglob("*")}
        return {name: file.read_bytes() for name, file in found.items() if file.is_file()}

    def sentence(self, run):
        """Return the one sentence in which a run ends; check that it changed nothing that was saved before."""
        before = self.saved()
        with pytest.raises(SystemExit) as stop:
            run()
        said = stop.value.code
        assert isinstance(said, str) and "\n" not in said.strip(), "a text: Python prints it to stderr, exit status 1"
        assert self.saved() == before, "embeddings/ changed"
        return said

    def matrix(self, column):
        """Return a column's vectors and vocabulary (category, count), read as anyone would: NumPy and pandas."""
        vocabulary = pd.read_csv(self.embeddings / f"{column}.csv", dtype={"category": str}, keep_default_na=False)
        return np.load(self.embeddings / f"{column}.npy"), vocabulary

    def trained_model(self):
        return keras.models.load_model(self.embeddings / "embed_model.keras", safe_mode=True)


def report(printed):
    """Return the figures of the report that build_embed_model.py printed: {name: [figures]}."""
    lines = printed[printed.index("neither script trained on") :].splitlines()[1:]
    lines = itertools.takewhile(lambda line: not line.startswith(("  The ", "  Nothing ")), lines)  # the verdict
    rows = (re.fullmatch(r"  (\S.*?)\s{2,}([-\d.,e+\snaif]+)", line) for line in lines)
    return {row[1]: [float(figure.replace(",", "")) for figure in row[2].split()] for row in rows if row}


@pytest.fixture
def pair(tmp_path):
    """Return a function that makes a Pair in a folder of this test."""
    return lambda *arguments, **settings: Pair(tmp_path / f"pair{len(list(tmp_path.iterdir()))}", *arguments, **settings)


@pytest.fixture(autouse=True, scope="session")
def quick():
    """Let small runs be quick: few boosting iterations, and no graph built for a handful of training steps.

    The figure to beat is not what these tests are about. Runs as a real process and those in `compiled` are as users'.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HistGradientBoostingRegressor", "HistGradientBoostingClassifier"):
            real = getattr(sklearn.ensemble, name)
            patch.setattr(sklearn.ensemble, name, lambda real=real, **settings: real(**{**settings, "max_iter": 10}))
        tf.config.run_functions_eagerly(True)
        yield
        tf.config.run_functions_eagerly(False)


@pytest.fixture
def compiled():
    """Train as users do, with graphs compiled by XLA."""
    tf.config.run_functions_eagerly(False)
    yield
    tf.config.run_functions_eagerly(True)


@pytest.fixture
def graphs(compiled, monkeypatch):
    """Train with graphs, for many steps, but without XLA: on tables this small it takes longer to compile than it saves."""
    compile_model = keras.Model.compile
    monkeypatch.setattr(keras.Model, "compile", lambda *inputs, **settings: compile_model(*inputs, **{**settings, "jit_compile": False}))
