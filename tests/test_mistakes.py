"""Every mistake ends in one plain sentence, before anything in embeddings/ changes - or in the right result (issue 5)."""

import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import Pair, made_up, report

TABLE = made_up(60)
TEXT = TABLE.to_csv(index=False)
LINES = TEXT.splitlines()


def cells(column, value, line=5):
    """Return the table with one cell replaced, the one on this line of the file (the header is line 1)."""
    table = TABLE.astype(object)
    table.loc[line - 2, column] = value
    return table.to_csv(index=False)


def column(name, values):
    return TABLE.assign(**{name: values}).to_csv(index=False)


# Mistakes that end before training. (case, the table's file, settings of the first script, of the second one, words)
# Where the second script has settings, the first one has run without them and the second must say the words.

TABLES = [
    ("no file", TEXT, {"DATA_FILE": "none.csv"}, "none.csv DATA_FILE"),
    ("pattern without a match", TEXT, {"DATA_FILE": "part-*.csv"}, "part-*.csv"),
    ("a folder", TEXT, {"DATA_FILE": "."}, ""),
    ("empty file", "", {}, "empty"),
    ("only a blank line", "\n", {}, "table.csv"),
    ("header only", LINES[0] + "\n", {}, "0 rows"),
    ("too few rows", "\n".join(LINES[:10]), {}, "9 rows"),
    ("repeated header", TEXT.replace("c,d", "c,c", 1), {"CATEGORICAL_COLUMNS": ["c"]}, "'c' 2"),
    ("repeated target", TEXT.replace("d,x,y", "y,x,y", 1), {"CATEGORICAL_COLUMNS": ["c"]}, "'y' 2"),
    ("a short line", "\n".join([*LINES[:7], "k1,left", *LINES[7:]]), {}, "line 8"),
    ("a long line", "\n".join([*LINES[:7], "k1,left,1,2,3", *LINES[7:]]), {}, "line 8"),
    ("a short line after a quoted newline", "\n".join([*LINES[:3], '"a\nb",left,1,2', "k1"]), {}, "line 6"),
    ("an open quote", "\n".join([*LINES[:7], '"k1,left,1,2', *LINES[7:]]), {}, "line"),
    ("a semicolon for a comma", TEXT.replace(",", ";"), {}, "commas between"),
    ("Latin-1", TEXT.replace("k1", "Zürich").encode("latin-1"), {}, "UTF-8"),
    ("UTF-16", TEXT.encode("utf-16"), {}, "UTF-8"),
    ("a table that is not gzip", TEXT, {"DATA_FILE": "t.csv.gz"}, "t.csv.gz"),
    ("a truncated gzip", TEXT, {"DATA_FILE": "half.csv.gz"}, "half.csv.gz"),
    ("files of other columns", TEXT, {"DATA_FILE": "[tu]*.csv"}, "u.csv 'd'"),
    # the lists
    ("a column not there", TEXT, {"CATEGORICAL_COLUMNS": ["c", "dd"]}, "'dd' closest 'd'"),
    ("a target not there", TEXT, {"TARGET_COLUMN": "Y"}, "'Y' closest 'y'"),
    ("a split column not there", TEXT, {"SPLIT_COLUMN": "date"}, "'date'"),
    ("listed twice", TEXT, {"CATEGORICAL_COLUMNS": ["c", "c"]}, "'c' twice"),
    ("target among the features", TEXT, {"CATEGORICAL_COLUMNS": ["c", "y"]}, "'y' input"),
    ("target splits the table", TEXT, {"SPLIT_COLUMN": "y"}, "'y' input"),
    ("no categorical column", TEXT, {"CATEGORICAL_COLUMNS": []}, "CATEGORICAL_COLUMNS empty"),
    ("text for a list", TEXT, {"CATEGORICAL_COLUMNS": "cd"}, "CATEGORICAL_COLUMNS list"),
    ("TASK misspelt", TEXT, {"TASK": "regresion"}, "TASK 'regresion' 'regression'"),
    ("text as a regression target", cells("y", "high"), {}, "line 5 'y' 'high'"),
    ("text after 100,000 rows", "\n".join([LINES[0], '"a\nb",left,1,2', *LINES[1:] * 1700, "k1,left,1,high"]), {}, "line 102004 'y' 'high'"),
    ("a regression target missing", cells("y", ""), {}, "line 5 'y' 1"),
    ("three targets missing", column("y", [7.5, 8, None] * 3 + list(range(51))), {}, "line 4 3 'y'"),
    ("an infinite target", cells("y", "inf"), {}, "line 5 'y' 'inf'"),
    ("one value as a target", column("y", 7), {}, "'y' one value"),
    ("LOG_TARGET below -1", cells("y", -2), {"LOG_TARGET": True}, "LOG_TARGET -2"),
    ("a binary target missing", cells("y", "").replace("1", "a"), {"TASK": "binary"}, "line 5 'y'"),
    ("a binary target of one class", column("y", "yes"), {"TASK": "binary"}, "'y' 1 class"),
    ("a binary target of three classes", column("y", ["a", "b", "c"] * 20), {"TASK": "binary"}, "'y' 3 classes"),
    ("a class in test rows only", "test class", {"TASK": "multiclass"}, "'rare' 'y' training"),
    ("three names split the table", column("z", ["p", "q", "r"] * 20), {"SPLIT_COLUMN": "z"}, "SPLIT_COLUMN 'z' few"),
    ("names and numbers split the table", column("z", ["p", *range(59)]), {"SPLIT_COLUMN": "z"}, "SPLIT_COLUMN 'z' dates 'p'"),
    ("days before months", column("z", ["12/01/2025", "10/01/2025", "01/08/2025"] * 20), {"SPLIT_COLUMN": "z"}, "'z' 2026-01-31 '12/01/2025'"),
    ("a split with missing cells", column("z", ["", "1", "2"] * 20), {"SPLIT_COLUMN": "z"}, "'z' missing ''"),
    ("a split of two values", column("z", [1, 2] * 30), {"SPLIT_COLUMN": "z"}, "SPLIT_COLUMN 'z' few"),
    ("a split of one value in most rows", column("z", [1] * 3 + [2] * 48 + [3] * 9), {"SPLIT_COLUMN": "z"}, "SPLIT_COLUMN 'z' many"),
    ("no seed", TEXT, {"SEED": None}, "SEED None"),
    ("a seed below zero", TEXT, {"SEED": -1}, "SEED -1"),
]  # fmt: skip
NUMBERS = [
    ("a numerical column not there", TEXT, {"NUMERICAL_COLUMNS": ["xx"]}, "'xx' closest 'x'"),
    ("a column without an embedding", TEXT, {"CATEGORICAL_COLUMNS": ["c", "x"], "NUMERICAL_COLUMNS": []}, "'x' embedding"),
    ("in both lists", TEXT, {"NUMERICAL_COLUMNS": ["x", "c"]}, "'c' twice"),
    ("a number listed twice", TEXT, {"NUMERICAL_COLUMNS": ["x", "x"]}, "'x' twice"),
    ("target among the numbers", TEXT, {"NUMERICAL_COLUMNS": ["x", "y"]}, "'y' input"),
    ("no categorical column left", TEXT, {"CATEGORICAL_COLUMNS": []}, "CATEGORICAL_COLUMNS empty"),
    ("a decimal comma", cells("x", "12,5"), {}, "line 5 'x' '12,5'"),
    ("a currency", cells("x", "$3"), {}, "line 5 'x' '$3'"),
    ("n/a", cells("x", "n/a"), {}, "line 5 'x' 'n/a'"),
    ("infinite", cells("x", "-inf"), {}, "line 5 'x' '-inf'"),
    ("beyond float32", cells("x", "1e39"), {}, "line 5 'x' '1e39'"),
    ("1_000, which Python would read", cells("x", "1_000"), {}, "line 5 'x' '1_000'"),
    ("digits of another script, which Python would read", cells("x", "٣"), {}, "line 5 'x' '٣'"),
    ("no list of numbers", TEXT, {"NUMERICAL_COLUMNS": None}, "list"),
    ("truth values and a gap", column("x", [True, None, False] * 20), {}, "line 2 'x' 'True'"),
    ("all missing", column("x", ""), {}, "'x'"),
    # the same table with other rows: a figure on its test rows would be a leak
    ("a row fewer", "\n".join(LINES[:-1]) + "\n", {}, "other rows"),
    ("rows in another order", "\n".join([LINES[0], *LINES[:0:-1]]) + "\n", {}, "other rows"),
    ("another target", column("y", range(60)), {}, "other rows"),
    ("other categories", column("c", ["a", "b"] * 30), {}, "other rows"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A pair that has run on TABLE; what a case damages is a copy of it."""
    return Pair(tmp_path_factory.mktemp("trained"), TABLE).run()


@pytest.fixture
def copy(trained, tmp_path):
    """Return a function that copies the folder and edits the scripts there."""

    def make(base=(), model=()):
        shutil.copytree(trained.folder, tmp_path, dirs_exist_ok=True)
        one = Pair(tmp_path, base=base, model=model)
        one.table = TABLE
        return one

    return make


@pytest.fixture
def untrained(monkeypatch):
    """Fail where a run goes as far as training."""
    monkeypatch.setattr(keras.Model, "fit", lambda *a, **k: pytest.fail("training began"))


def test_the_guard_of_these_tests_guards(copy, untrained):
    """Without a mistake both scripts get as far as training, where `untrained` fails."""
    one = copy()
    for run in (one.run_base, one.run_model):
        with pytest.raises(pytest.fail.Exception, match="training began"):
            run()


def assert_says(sentence, words):
    assert sentence.startswith(("Error: ", "Stopped")) and len(sentence) < 500, sentence
    missing = [word for word in words.split(" ") if word not in sentence]
    assert not missing, f"{missing} not in: {sentence}"


@pytest.mark.parametrize("text, base, words", [pytest.param(*case, id=name) for name, *case in TABLES])
def test_a_mistake_in_the_table_or_the_lists(copy, untrained, text, base, words):
    one = copy(base)
    if text == "test class":
        last = one.test_rows()
        text = column("y", np.where(np.cumsum(last) == 1, np.where(last, "rare", "a"), np.where(np.arange(60) % 2, "a", "b")))
    one.write("table.csv", text)
    one.write("u.csv", TEXT.replace("c,d,", "c,other,", 1))
    one.write("t.csv.gz", TEXT)
    one.write("half.csv.gz", gzip.compress(TEXT.encode())[:-40])
    assert_says(one.sentence(one.run_base), words)


@pytest.mark.parametrize("text, model, words", [pytest.param(*case, id=name) for name, *case in NUMBERS])
def test_a_mistake_that_the_second_script_finds(copy, untrained, text, model, words):
    one = copy(model=model)
    one.write("table.csv", text)
    assert_says(one.sentence(one.run_model), words)


@pytest.mark.skipif(int(pd.__version__[0]) < 3, reason="pandas 2 reads a cell up to its first NUL, so that the files are refused")
def test_a_category_that_a_saved_model_would_mistake_is_refused(pair):
    """NumPy text, by which Keras saves a vocabulary, ends at a NUL: each such category would be read as unknown."""
    one = pair(made_up(60).replace({"c": {"k1": "k1\0"}}))
    one.run_base()
    assert_says(one.sentence(one.run_model), "'c' NUL")


@pytest.mark.parametrize(
    "settings",
    [{"SEED": 1}, {"SPLIT_COLUMN": "x2"}, {"LOG_TARGET": True}, {"TARGET_COLUMN": "x2"}],
    ids=lambda settings: next(iter(settings)),
)
def test_embeddings_of_other_settings_are_refused(copy, untrained, settings):
    """Their test rows are not those of now, or their target is not."""
    one = copy(settings, {"NUMERICAL_COLUMNS": []})
    one.write("table.csv", TABLE.assign(x2=range(60), y=TABLE["y"].abs()).to_csv(index=False))
    assert_says(one.sentence(one.run_model), "build_embeddings.py again")


def test_the_split_among_the_numbers_is_refused(copy, untrained):
    one = copy({"SPLIT_COLUMN": "x"})
    pass


# Right where an error would be wrong


def read(one, columns, numbers):
    """Return the columns as the scripts read them from the table."""
    tables = one.call(one.base.read_table, dict.fromkeys(columns), dict.fromkeys(numbers))
    return {name: list(values) for table in tables for name, values in table.items()}


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda one, text: one.write("table.csv", text), id="plain"),
        pytest.param(lambda one, text: one.write("table.csv", b"\xef\xbb\xbf" + text.encode()), id="byte-order mark"),
        pytest.param(lambda one, text: one.write("table.csv", text.replace("\n", "\r\n")), id="lines of Windows"),
        pytest.param(lambda one, text: one.write("table.csv", text + "\n\n"), id="blank lines at the end"),
        pytest.param(lambda one, text: one.write("table.csv", text.rstrip("\n")), id="no newline at the end"),
        pytest.param(lambda one, text: one.write("table.csv", ",".join(f'"{c}"' for c in "cdxy") + text[7:]), id="quoted header"),
    ],
)
def test_a_table_as_programs_write_it(pair, write):
    one = pair()
    write(one, TEXT)
    assert read(one, ["c", "d"], ["y"]) == {"c": list(TABLE["c"]), "d": list(TABLE["d"]), "y": pytest.approx(list(TABLE["y"]))}


def test_quoted_newlines_and_delimiters_are_text(pair):
    texts = ["a,b", "a\nb", "a\r\nb", 'say "hi"', " padded ", "tab\t", "'", ";"]
    one = pair(pd.DataFrame({"c": texts * 5, "y": range(40)}))
    assert read(one, ["c"], ["y"])["c"] == texts * 5


def test_a_column_may_be_an_input_and_split_the_table(pair):
    one = pair(TABLE.assign(day=range(60)), {"CATEGORICAL_COLUMNS": ["c", "day"], "SPLIT_COLUMN": "day"})
    rows = one.call(one.base.load_rows, ["c", "day"], [])
    parts = [list(part) for part in (rows.training, rows.validation, rows.test)]
    assert parts == [list(range(48)), list(range(48, 54)), list(range(54, 60))]
    assert list(rows.table["day"]) == [str(day) for day in range(60)]


def test_a_cell_of_any_length_is_read(pair):
    texts = ["x" * 200_000, "y"] * 15
    one = pair(pd.DataFrame({"c": texts, "y": range(30)}))
    assert read(one, ["c"], ["y"])["c"] == texts


def test_files_of_a_pattern_are_one_table_in_the_order_of_their_names(pair):
    one = pair(base={"DATA_FILE": "part-*.csv"})
    one.write("part-2.csv", "\n".join([LINES[0], *LINES[31:]]))
    one.write("part-1.csv", "y,d,x,c\n" + "\n".join(",".join(np.array(line.split(","))[[3, 1, 2, 0]]) for line in LINES[1:31]))
    assert read(one, ["c"], ["y"]) == {"c": list(TABLE["c"]), "y": pytest.approx(list(TABLE["y"]))}


def test_odd_numbers_wreck_nothing(pair, capsys, graphs):
    """Constant, nearly all missing, huge and tiny columns, an outlier: the planted effect is found all the same."""
    table = made_up(300)
    random = np.random.default_rng(0)
    odd = {
        "constant": 5.0, "zero": 0.0, "missing but for one": [1.0] + [None] * 299, "huge": random.normal(size=300) * 1e30,
        "tiny": random.normal(size=300) * 1e-30, "outlier": [3e38] + [1.0] * 299, "largest": random.choice([-3.4e38, 3.4e38], 300),
        "small steps far off": 1e9 + np.arange(300.0), "next to nothing": random.choice([0.0, 1e-40, 1.0], 300),
        "all but nothing": random.choice([0.0, 1e-40], 300),
    }  # fmt: skip
    one = pair(table.assign(**odd), {"EPOCHS": 8}, {"NUMERICAL_COLUMNS": ["x", *odd], "EPOCHS": 30}).run()
    figures = report(capsys.readouterr().out)
    assert figures["embeddings + numerical columns"][0] < 0.7 * figures["mean of the training rows"][0], figures
    assert np.isfinite(one.predict(one.table)).all()
    assert all(np.isfinite(weights).all() for weights in one.trained_model().get_weights())
    unseen = one.table[:2].assign(constant=3e38, x=-3e38, huge=None)
    assert np.isfinite(one.predict(unseen)).all()


def test_odd_categories_wreck_nothing(pair, capsys, graphs):
    """One category, all missing, one of 10,000 characters, one for each row - of which the run says what it is worth."""
    odd = {"one": "same", "missing": "", "long": ["x" * 10_000, "y" * 10_000, "z"] * 100, "row": [f"r{i}" for i in range(300)]}
    table = made_up().assign(**odd)
    one = pair(table, {"CATEGORICAL_COLUMNS": ["c", *odd], "EPOCHS": 8}, {"EPOCHS": 8}).run()
    printed = capsys.readouterr().out
    about = next(line for line in printed.splitlines() if line.startswith("  row "))
    assert "not generalise" in about, about
    assert "not generalise" not in printed.replace(about, "")
    figures = report(printed)
    assert figures["embeddings + numerical columns"][0] < 0.7 * figures["mean of the training rows"][0], figures
    assert one.matrix("one")[0].shape == one.matrix("missing")[0].shape == (2, 2)
    assert one.matrix("missing")[1]["category"].tolist()[1] == ""
    assert sorted(one.matrix("long")[1]["category"][1:]) == ["x" * 10_000, "y" * 10_000, "z"]
    assert max(map(len, printed.splitlines())) < 1000, "no category fills the screen"


@pytest.mark.parametrize("scale, shift", [(1e12, 0), (1e-12, 0), (1e-12, 1e-12), (1, 1e6)])  # float32 answers: steps of 0.06 at 1e6
def test_targets_of_any_size(pair, capsys, scale, shift, graphs):
    table = made_up()
    table["y"] = table["y"] * scale + shift
    one = pair(table, {"EPOCHS": 6}, {"EPOCHS": 6}).run()
    figures = report(capsys.readouterr().out)
    assert figures["embeddings + numerical columns"][0] < 0.7 * figures["mean of the training rows"][0], figures
    assert one.predict(table).std() == pytest.approx(table["y"].std(), rel=0.5)


# Saved files


class Killed(BaseException):
    """In place of SIGKILL, which tests/benchmarks/faults.py sends: no code of the scripts catches it."""


def damage_vocabulary(change):
    """Return a damage: the lines of a vocabulary, its header first, changed."""

    def damage(folder):
        lines = (folder / "c.csv").read_text().splitlines(keepends=True)
        (folder / "c.csv").write_text("".join(change(lines)))

    return damage


def damage_matrix(change):
    return lambda folder: np.save(folder / "c.npy", change(np.load(folder / "c.npy")), allow_pickle=True)


def truncate(name, size=-20):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def with_nan(weights):
    weights[1, 0] = np.nan
    return weights


DAMAGES = {
    "npy missing": lambda folder: (folder / "c.npy").unlink(),
    "npy empty": truncate("c.npy", 0),
    "npy truncated": truncate("c.npy"),
    "npy is text": lambda folder: (folder / "c.npy").write_text("hello"),
    "npy a row short": damage_matrix(lambda weights: weights[:-1]),
    "npy a row long": damage_matrix(lambda weights: weights[[*range(len(weights)), 0]]),
    "npy a column short": damage_matrix(lambda weights: weights[:, :-1]),
    "npy flat": damage_matrix(np.ravel),
    "npy a number": damage_matrix(lambda weights: np.float32(3)),
    "npy float64": damage_matrix(lambda weights: weights.astype("float64")),
    "npy with NaN": damage_matrix(with_nan),
    "npy with other numbers": damage_matrix(lambda weights: weights + 1),
    "npy holds a pickle": damage_matrix(lambda weights: np.array([{"a": 1}], object)),
    "vocabulary missing": lambda folder: (folder / "c.csv").unlink(),
    "vocabulary empty": truncate("c.csv", 0),
    "vocabulary with a duplicate": damage_vocabulary(lambda lines: [*lines[:3], lines[2], *lines[4:]]),
    "vocabulary a line lost": damage_vocabulary(lambda lines: lines[:-1]),
    "vocabulary a line lost in the middle": damage_vocabulary(lambda lines: lines[:3] + lines[4:]),
    "vocabulary a line too many": damage_vocabulary(lambda lines: [*lines, '"k99",1\n']),
    "vocabulary in another order": damage_vocabulary(lambda lines: [*lines[:2], *lines[:1:-1]]),
    "vocabulary without a header": damage_vocabulary(lambda lines: lines[1:]),
    "vocabulary is no text": lambda folder: (folder / "c.csv").write_bytes(os.urandom(99)),
    "vocabulary of another column": lambda folder: shutil.copy(folder / "d.csv", folder / "c.csv"),
}
RUN_DAMAGES = {
    "run.json missing": lambda folder: (folder / "run.json").unlink(),
    "run.json truncated": truncate("run.json"),
    "run.json empty": truncate("run.json", 0),
    "run.json of another form": lambda folder: (folder / "run.json").write_text("[]"),
    "run.json with empty entries": lambda folder: (folder / "run.json").write_text('{"columns": {"c": {}}}'),
}


@pytest.mark.parametrize("damage", [pytest.param(damage, id=name) for name, damage in (DAMAGES | RUN_DAMAGES).items()])
def test_damaged_files_are_refused(copy, untrained, damage):
    """By build_embed_model.py with a sentence, and by embed and predict with the same, as an exception."""
    one = copy()
    damage(one.embeddings)
    assert_says(one.sentence(one.run_model), "build_embeddings.py embeddings/")
    for use in (one.embed, one.predict):
        with pytest.raises(ValueError, match="build_embeddings.py"):
            use(TABLE)


@pytest.fixture(scope="module")
def second_run(tmp_path_factory):
    """Another run over the same rows; the learned vectors differ, nothing else does."""
    return Pair(tmp_path_factory.mktemp("second"), TABLE, {"LEARNING_RATE": 1e-3}).run()


@pytest.mark.parametrize("name", ["c.npy", "run.json"])
def test_files_of_two_runs_mixed_are_refused(copy, untrained, second_run, name):
    one = copy()
    assert one.saved()[name] != second_run.saved()[name]
    shutil.copy(second_run.embeddings / name, one.embeddings / name)
    assert_says(one.sentence(one.run_model), "run")
    with pytest.raises(ValueError, match="build_embeddings.py"):
        one.embed(TABLE)


@pytest.mark.parametrize("damage", [truncate("embed_model.keras", 500), lambda folder: (folder / "embed_model.keras").unlink()])
def test_a_damaged_model_is_refused(copy, damage):
    one = copy()
    damage(one.embeddings)
    with pytest.raises(ValueError, match="build_embed_model.py"):
        one.predict(TABLE)


def test_a_new_first_run_removes_the_model_of_the_last(copy):
    """Else predict would mix the vectors of two runs."""
    one = copy({"SEED": 5})
    one.run_base()
    assert "embed_model.keras" not in one.saved()
    with pytest.raises(ValueError, match="build_embed_model.py"):
        one.predict(TABLE)


@pytest.mark.parametrize("damage", [pytest.param(damage, id=name) for name, damage in DAMAGES.items()])
def test_the_first_script_works_over_damaged_files(copy, monkeypatch, damage):
    """What it does not read it replaces; that it gets as far as training shows it."""

    def stop(*arguments, **settings):
        raise Killed

    one = copy()
    damage(one.embeddings)
    monkeypatch.setattr(keras.Model, "fit", stop)
    with pytest.raises(Killed):
        one.run_base()


# predict and embed on frames


@pytest.mark.parametrize(
    "change, match",
    [
        pytest.param(lambda frame: frame.drop(columns="c"), "'c'", id="a categorical column missing"),
        pytest.param(lambda frame: frame.assign(x="12,5"), "'12,5'", id="text among the numbers"),
        pytest.param(lambda frame: frame.assign(x=np.inf), "'x'", id="infinite"),
        pytest.param(lambda frame: frame.drop(columns="x"), "'x'", id="a numerical column missing"),
        pytest.param(lambda frame: frame[["x", *frame.columns]], "'x'", id="a numerical column twice"),
        pytest.param(lambda frame: frame[["c", *frame.columns]], "'c'", id="a categorical column twice"),
    ],
)
def test_frames_that_predict_refuses(trained, change, match):
    with pytest.raises(ValueError, match=match):
        trained.predict(change(TABLE))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda frame: frame.assign(extra=1, y=None), id="extra columns"),
        pytest.param(lambda frame: frame[["y", "x", "d", "c"]], id="other order"),
        pytest.param(lambda frame: frame.set_index(frame.index[::-1]), id="other index"),
        pytest.param(lambda frame: frame.set_index(frame.index * 0), id="index with duplicates"),
        pytest.param(lambda frame: frame.astype({"c": "category", "d": object, "x": object}), id="other dtypes"),
        pytest.param(lambda frame: frame.assign(x=frame["x"].map(lambda x: "" if np.isnan(x) else repr(x))), id="numbers as text"),
    ],
)
def test_frames_that_differ_in_nothing_that_counts(trained, change):
    frame = change(TABLE)
    np.testing.assert_allclose(trained.predict(frame), trained.predict(TABLE), rtol=1e-6)
    vectors = trained.embed(frame)
    assert vectors.index.equals(frame.index)
    names = [name for name in vectors if name.startswith(("c_", "d_"))]
    np.testing.assert_array_equal(vectors[names], trained.embed(TABLE)[names])


def test_a_frame_without_rows(trained):
    assert trained.predict(TABLE[:0]).shape == (0,)
    empty = trained.embed(TABLE[:0])
    assert len(empty) == 0 and list(empty) == list(trained.embed(TABLE))


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """A pair whose categories look like numbers and truth values."""
    table = pd.DataFrame({"c": ["01", "2", "10"] * 20, "d": ["True", "False"] * 30, "x": 1.0, "y": range(60)})
    table["y"] = table["c"].astype(int) * 3.0 + (table["d"] == "True")
    return Pair(tmp_path_factory.mktemp("coded"), table).run()


@pytest.mark.parametrize("dtype", ["int64", "float64", "Int64", "object", "int8"])
def test_frames_of_other_dtypes(coded, dtype):
    """Numbers where text was read: 1 is the category 01, for there is no other it could be."""
    frame = coded.table.assign(c=coded.table["c"].astype(int).astype(dtype), d=coded.table["d"] == "True")
    np.testing.assert_allclose(coded.predict(frame), coded.predict(coded.table), rtol=1e-6)
    pd.testing.assert_frame_equal(coded.embed(frame), coded.embed(coded.table))


@pytest.mark.parametrize("words", [("TRUE", "FALSE"), ("true", "false"), ("True", "False"), ("1", "0")])
def test_truth_values_are_the_text_that_they_were(pair, words):
    one = pair(pd.DataFrame({"c": [*words, ""] * 20, "d": "a", "x": 1.0, "y": range(60)}))
    one.run_base()
    text = pd.DataFrame({"c": [*words, ""], "d": "a"})
    for cells in ([True, False, None], pd.array([True, False, None], "boolean")):
        pd.testing.assert_frame_equal(one.embed(text.assign(c=cells)), one.embed(text))
    pd.testing.assert_frame_equal(one.embed(text[:2].assign(c=[True, False])), one.embed(text[:2]))


def test_a_number_too_long_for_a_float_is_refused(pair):
    one = pair(pd.DataFrame({"c": ["123456789012345680", "2", ""] * 20, "d": "a", "x": 1.0, "y": range(60)}))
    one.run_base()
    with pytest.raises(ValueError, match="dtype"):
        one.embed(pd.DataFrame({"c": [123456789012345679, 2], "d": "a"}))


def test_a_number_that_could_be_two_categories_is_refused(pair):
    one = pair(pd.DataFrame({"c": ["01", "1", "2"] * 20, "d": "a", "x": 1.0, "y": range(60)}))
    one.run_base()
    with pytest.raises(ValueError, match="dtype"):
        one.embed(pd.DataFrame({"c": [1, 2], "d": "a"}))
    assert len(one.embed(pd.DataFrame({"c": ["1", "2"], "d": "a"}))) == 2


def test_a_missing_cell_that_may_have_been_the_text_na_is_refused(pair):
    """Namibia: pandas reads NA as missing unless told not to."""
    one = pair(pd.DataFrame({"c": ["NA", "DE"] * 30, "d": "a", "x": 1.0, "y": range(60)}))
    one.run_base()
    with pytest.raises(ValueError, match="keep_default_na"):
        one.embed(pd.DataFrame({"c": [np.nan, "DE"], "d": "a"}))


# Faults


def test_ctrl_c_says_what_is_kept(copy, monkeypatch):
    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "fit", interrupted)
    one = copy()
    for run in (one.run_base, one.run_model):
        assert_says(one.sentence(run), "Stopped embeddings/")


@pytest.mark.parametrize("script", ["run_base", "run_model"])
def test_a_full_disk_changes_nothing(copy, monkeypatch, script):
    """The disk fills up while the files are written."""

    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    one = copy()
    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    monkeypatch.setattr(keras.Model, "save", full)
    assert_says(one.sentence(getattr(one, script)), "embeddings/ space left room")
    monkeypatch.undo()
    one.run()  # and the next run works
    assert np.isfinite(one.predict(TABLE)).all()


@pytest.mark.parametrize("script, moves", [("run_base", moves) for moves in (0, 1, 3)] + [("run_model", 0), ("run_model", 1)])
def test_killed_while_moving_the_files(copy, monkeypatch, script, moves):
    """After any number of moves the next start finishes or forgets: one run, whole, the old one or the new one."""
    one = copy({"LEARNING_RATE": 1e-3}, {"LEARNING_RATE": 1e-3})
    old, done, replace = one.saved(), [], os.replace

    def stop(*arguments, **settings):
        if len(done) == moves:
            raise Killed
        done.append(replace(*arguments, **settings))

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(Killed):
        getattr(one, script)()
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(keras.Model, "fit", stop)  # the next run starts, and is killed when it trains
    done.clear()
    done.extend([None] * moves)
    with pytest.raises(Killed):
        one.run_base()
    names = {"c.npy", "c.csv", "d.npy", "d.csv"}
    changed = {name for name in names if one.saved()[name] != old[name]}
    assert changed in ({"c.npy", "d.npy"}, set()), "files of two runs"
    assert not [name for name in one.saved() if name.startswith((".saved", ".saving"))]
    assert len(one.embed(TABLE)) == 60
    if script == "run_model":
        assert np.isfinite(one.predict(TABLE)).all()


def test_of_two_runs_at_once_the_one_that_ends_last_is_saved(copy, monkeypatch):
    """Another first run, from its start to its end, while this one trains: no file of it is left."""
    one, two = copy({"CATEGORICAL_COLUMNS": ["c"]}), copy({"CATEGORICAL_COLUMNS": ["d"]})
    fit = keras.Model.fit

    def meanwhile(*arguments, **settings):
        monkeypatch.setattr(keras.Model, "fit", fit)
        two.run_base()
        assert {"d.npy"} == {name for name in two.saved() if name.endswith(".npy")}
        return fit(*arguments, **settings)

    monkeypatch.setattr(keras.Model, "fit", meanwhile)
    one.run_base()
    assert {"c.npy"} == {name for name in one.saved() if name.endswith(".npy")}
    assert len(one.embed(TABLE)) == 60


def test_a_second_save_leaves_the_first_alone(copy):
    """Of another run at the same moment: before, it took the files of the first one away."""
    one = copy()
    base, folder = one.base, one.embeddings
    run = dict.fromkeys(["columns", "rows", "target", "test", "unknown", "validation_error"])
    with base.saving(folder, run) as new:
        (new / "c.npy").write_bytes(b"first")
        with pytest.raises(base.InputError, match="Another run"), base.saving(folder, {}):
            pass
    assert (folder / "c.npy").read_bytes() == b"first" and json.loads((folder / "run.json").read_text())["files"] == ["c.npy"]


def test_a_model_is_not_saved_beside_the_vectors_of_another_run(copy, second_run, monkeypatch):
    """A first run ends while the second script trains on the vectors before it."""
    one, fit = copy(), keras.Model.fit

    def meanwhile(*arguments, **settings):
        shutil.copytree(second_run.embeddings, one.embeddings, dirs_exist_ok=True)
        return fit(*arguments, **settings)

    monkeypatch.setattr(keras.Model, "fit", meanwhile)
    with pytest.raises(SystemExit, match="Another run .* build_embed_model.py again"):
        one.run_model()
    assert one.saved() == second_run.saved()


def test_a_file_where_the_folder_should_be(copy, untrained):
    one = copy({"EMBEDDINGS_DIR": "table.csv"})
    assert_says(one.sentence(one.run_base), "table.csv")


def test_a_read_only_folder(copy, untrained, monkeypatch):
    """Root may write everywhere, so the refusal is the system's in name only."""

    def refused(path, *arguments, **settings):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    one = copy()
    monkeypatch.setattr(Path, "mkdir", refused)
    assert_says(one.sentence(one.run_base), "embeddings/ Permission EMBEDDINGS_DIR")


# Numbers


@pytest.mark.parametrize("script", ["run_base", "run_model"])
def test_a_diverged_training_saves_nothing(copy, script):
    one = copy({"LEARNING_RATE": 1e30}, {"LEARNING_RATE": 1e30})
    assert_says(one.sentence(getattr(one, script)), "diverged LEARNING_RATE")


# As a process


def test_processes_that_cannot_train_jointly_do_not_start(copy):
    one = copy()
    one.base.PROCESSES = 2
    assert_says(one.sentence(one.run_base), "KERAS_BACKEND=jax KERAS_DISTRIBUTION_JOB_ADDRESSES")


def test_predict_without_tensorflow_says_so(copy):
    one = copy()
    one.base.tf = None
    with pytest.raises(one.base.InputError, match="KERAS_BACKEND=tensorflow"):
        one.predict(TABLE)


@pytest.mark.parametrize("script, settings, words", [("build_embeddings", {"TASK": "guess"}, "'guess'"), ("build_embed_model", {"SEED": 9}, "again")])
def test_a_process_ends_with_one_line_and_status_1(copy, script, settings, words):
    one = copy(settings)
    before = one.saved()
    done = subprocess.run([sys.executable, f"{script}.py"], cwd=one.folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if not line.startswith(("WARNING", "I0000", "E0000", "W0000"))]
    assert len(said) == 1 and "Traceback" not in done.stderr and words in said[0], done.stderr
    assert one.saved() == before
