"""Properties that hold for any text and any frame (hypothesis)."""

import csv
import io
import os
import re
import shutil
import unicodedata

import numpy as np
import pandas as pd
import pytest
from conftest import Pair, made_up
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

SPECIAL = ["", " ", "\t", "\n", "\r", "\r\n", '"', '""', ",", "'", "\\", "a\nb", "🚲", "👩‍👩‍👧", "NA", "nan", "<unknown>", "1", "01", "1e5", "#", "\ufeff"]
TEXTS = st.sampled_from(SPECIAL) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)  # UTF-8 has no surrogates
FEW = settings(max_examples=12, deadline=None)  # each example writes a table and reads it back through main()


def as_csv(table):
    """Return the table as CSV with every cell quoted, written by Python's csv: pandas is not tested by pandas alone."""
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([list(table), *table.itertuples(index=False)])
    return text.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("properties")


@FEW
@given(texts=st.lists(TEXTS, min_size=2, max_size=12, unique=True), name=st.sampled_from(["c", "a\tb", '"', "é,/"]))
@example(texts=SPECIAL, name="c")
@example(texts=["a\0b", "a", "\0"], name="c")
def test_every_text_keeps_its_own_vector(folder, texts, name):
    assume(int(pd.__version__[0]) > 2 or not any("\0" in text for text in texts))  # pandas 2 reads a cell up to its first NUL
    shutil.rmtree(folder / "embeddings", ignore_errors=True)
    table = pd.DataFrame({name: texts * 30, "y": np.arange(30.0 * len(texts))})
    one = Pair(folder, base={"CATEGORICAL_COLUMNS": [name]}, model={"NUMERICAL_COLUMNS": []})
    one.write("table.csv", as_csv(table))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one.base, "train", lambda model, *rest: (model, {"errors": [1.0], "kept": [1], "least": 1.0}))  # vectors at their random start are all different, too
        one.run_base()
    (stem,) = [file[:-4] for file in one.saved() if file.endswith(".npy")]
    weights, vocabulary = one.matrix(stem)
    assert sorted(vocabulary["category"][1:]) == sorted(texts)
    row = {text: i for i, text in enumerate(vocabulary["category"]) if i}  # NumPy and pandas alone
    vectors = one.embed(table[[name]]).to_numpy()
    np.testing.assert_array_equal(vectors, weights[[row[text] for text in table[name]]])
    assert len(np.unique(weights, axis=0)) == len(texts) + 1


@pytest.mark.parametrize("cardinality", [128, 129, 32_768, 32_769])
def test_every_cell_is_read_as_its_text(pair, cardinality):
    """Also where the codes of a column outgrow one byte or two on the way."""
    texts = [f"{i:x}" for i in [*range(cardinality), *np.random.default_rng(0).integers(0, cardinality, 1000)]]
    one = pair(pd.DataFrame({"c": texts, "y": range(len(texts))}))
    columns, numbers = one.call(one.base.read_table, {"c": ""}, {"y": ""})
    assert columns["c"].tolist() == texts and numbers["y"].tolist() == list(range(len(texts)))


def test_spaces_where_a_line_begins_are_kept(pair):
    """pandas drops some of them where its buffer of 256 KB happens to end inside them."""
    texts = [" " * 50 + "x"] * 30_000
    one = pair(pd.DataFrame({"c": texts, "y": 1.0}))
    columns, _ = one.call(one.base.read_table, {"c": ""}, {"y": ""})
    assert columns["c"].categories.tolist() == texts[:1]


@settings(max_examples=200, deadline=None)
@given(names=st.lists(st.text(min_size=1, max_size=400) | st.sampled_from(["a", "A", "a/b", "a%2Fb", "..", ".", "con"]), min_size=1, max_size=6, unique=True))
@example(names=["ß", "ss", "SS"])
@example(names=["a\u0301", "á", "Á"])
@example(names=["x" * 300, "x" * 301, "X" * 300])
@example(names=["a/b", "a%2Fb", "A/b"])
@example(names=["가", "\u1100\u1161"])
@example(names=["é" * 60, "漢" * 100])
def test_every_column_name_has_a_file_of_its_own(plain_pair, names):
    """Also where files ignore case or write é in another way; no longer than a file system allows."""
    names = [name for name in names if not any(0xD800 <= ord(letter) < 0xE000 for letter in name)]  # UTF-8 has none
    stems = plain_pair.base.file_stems(names)
    assert len({unicodedata.normalize("NFC", stem).casefold() for stem in stems.values()}) == len(names)
    for stem in stems.values():
        assert len(f"{stem}.vectors.tsv".encode()) <= 255
        assert not re.search(r"[/\\:\0\n]", stem) and not stem.startswith(".")
        assert os.path.dirname(os.path.normpath(os.path.join("embeddings", f"{stem}.npy"))) == "embeddings"


@pytest.fixture(scope="module")
def plain_pair(tmp_path_factory):
    return Pair(tmp_path_factory.mktemp("names"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    table = made_up(120)
    table["c"] = [SPECIAL[i % len(SPECIAL)] for i in range(120)]
    one = Pair(tmp_path_factory.mktemp("rows"))
    one.write("table.csv", as_csv(table.assign(x=table["x"].map(lambda x: "" if np.isnan(x) else x))))
    one.table = table
    return one.run()


ROWS = st.lists(st.tuples(TEXTS, st.sampled_from(["left", "right", ""]), st.floats(width=32, allow_infinity=False)), min_size=2, max_size=6)


@FEW
@given(rows=ROWS, random=st.randoms())
def test_predict_answers_each_row_for_itself(trained, rows, random):
    frame = pd.DataFrame(rows, columns=["c", "d", "x"])
    together = trained.predict(frame)
    assert np.isfinite(together).all()
    alone = np.concatenate([trained.predict(frame[i : i + 1]) for i in range(len(frame))])
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-4)
    order = random.sample(range(len(frame)), len(frame))
    np.testing.assert_allclose(trained.predict(frame.iloc[order]), together[order], rtol=1e-4, atol=1e-4)
