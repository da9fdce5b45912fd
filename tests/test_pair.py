"""The two scripts as a pair: what they save is what they trained, and no test row has a part in it."""

import csv
import itertools
import json
import os
import re
import subprocess
import sys
import types
import zipfile

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, made_up, report, rows_of
from forward import forward
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import RidgeCV
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold, cross_val_score


@pytest.fixture
def fitted_models(monkeypatch):
    """Collect every Keras model that is trained."""
    models, fit = [], keras.Model.fit
    monkeypatch.setattr(keras.Model, "fit", lambda model, *a, **k: (models.append(model), fit(model, *a, **k))[1])
    return models


def embedding_weights(model):
    """Return the weights of the columns' embedding layers in a network, or in the one inside a saved model, the longest first."""
    network = next((layer for layer in model.layers if isinstance(layer, keras.Model)), model)
    found = [layer.get_weights()[0] for layer in network.layers if re.fullmatch(r"embedding_\d+", layer.name)]
    return sorted(found, key=len, reverse=True)


# What is saved


def test_saved_vectors_are_the_layers_and_numpy_gives_the_same_answers(pair, fitted_models, capsys):
    one = pair(made_up())
    one.run_base()
    model, *_ = fitted_models  # once for each piece of an epoch
    matrices = {column: one.matrix(column) for column in ["c", "d"]}
    for (saved, vocabulary), trained in zip(matrices.values(), embedding_weights(model), strict=True):
        assert saved.dtype == np.float32
        np.testing.assert_array_equal(saved, trained)
        assert len(vocabulary) == len(saved)

    ids = np.column_stack([
        vocabulary.index[1:].to_series(index=vocabulary["category"][1:]).reindex(one.table[column]).fillna(0)
        for column, (_, vocabulary) in matrices.items()
    ]).astype(int)
    test = one.test_rows()
    answers = forward(model, [ids[test]], {})
    np.testing.assert_allclose(answers, model.predict([ids[test]], verbose=0), rtol=1e-4, atol=1e-5)
    # the figure that the script printed is that of these answers
    train = one.base.split_rows(len(one.table)) == one.base.TRAINING
    y = one.table["y"].to_numpy()
    errors = y[test] - (answers.mean(axis=1) * y[train].std() + y[train].mean())
    printed = float(re.search(r"Test figures of y: RMSE ([\d.]+)", capsys.readouterr().out)[1])
    assert printed == pytest.approx(np.sqrt(np.mean(errors**2)), rel=2e-3)


def of_task(task):
    """Return a table with a target of this kind, and the settings for it."""
    table = made_up()
    if task == "log":
        table["y"] = np.exp(table["y"] / 4)
    elif task != "regression":
        table["y"] = pd.cut(table["y"], [-99, 8, 99] if task == "binary" else [-99, 5, 10, 99], labels=False).map("class {}".format)
    return table, {"TASK": "regression" if task == "log" else task, "LOG_TARGET": task == "log"}


TASKS = ["regression", "log", "binary", "multiclass"]


@pytest.mark.parametrize("task", TASKS)
def test_the_reports_figures_are_those_of_predict_on_the_test_rows(pair, capsys, task):
    table, settings = of_task(task)
    one = pair(table, settings).run()
    test = one.test_rows()
    printed = report(capsys.readouterr().out)["embeddings + numerical columns"]
    answers, y = one.predict(table[test]), table["y"][test].to_numpy()
    if task in ("regression", "log"):
        errors = answers - y
        figures = [np.sqrt(np.mean(errors**2)), np.mean(np.abs(errors)), 1 - np.mean(errors**2) / np.var(y)]
        if task == "log":
            figures.insert(0, np.sqrt(np.mean((np.log1p(answers) - np.log1p(y)) ** 2)))
    else:
        truth = np.searchsorted(sorted(set(table["y"])), y)
        chances = np.stack([1 - answers, answers], axis=1) if task == "binary" else answers / answers.sum(axis=1, keepdims=True)
        above = answers[truth == 1][:, None] - answers[truth == 0] if task == "binary" else None
        second = np.mean((above > 0) + (above == 0) / 2) if task == "binary" else np.mean(chances.argmax(axis=1) == truth)
        figures = [-np.mean(np.log(chances[range(len(y)), truth])), second]
    assert printed == [pytest.approx(figure, rel=2e-3) for figure in figures]


@pytest.mark.parametrize("task", TASKS)
def test_numpy_forward_pass_equals_predict(pair, task):
    table, settings = of_task(task)
    one = pair(table, settings, {"TRAIN_EMBEDDINGS": False}).run()
    model = one.trained_model()
    for column, trained in zip(["c", "d"], embedding_weights(model), strict=True):
        np.testing.assert_array_equal(one.matrix(column)[0], trained)  # so the .npy is what the answers come from
    inputs = {"c": table["c"].tolist(), "d": table["d"].tolist(), "x": table["x"].to_numpy("float32")}
    vocabularies = {column: one.matrix(column)[1]["category"].tolist() for column in ["c", "d"]}
    with np.errstate(invalid="ignore"):
        answers = forward(model, inputs, vocabularies)
    np.testing.assert_allclose(np.squeeze(answers), np.squeeze(one.predict(table)), rtol=1e-3, atol=1e-5)


def test_frozen_vectors_do_not_move_and_trainable_ones_do(pair):
    one = pair(made_up()).run()
    before = one.saved()
    for train, moved in [(True, True), (False, False)]:
        one.edit(model={"TRAIN_EMBEDDINGS": train})
        one.run_model()
        for column, trained in zip(["c", "d"], embedding_weights(one.trained_model()), strict=True):
            assert np.array_equal(one.matrix(column)[0], trained) != moved, (column, train)
    same = {name for name, content in one.saved().items() if content == before.get(name)}
    assert {"c.npy", "c.csv", "d.npy", "d.csv"} <= same, "the second script must not touch what the first one saved"


@pytest.mark.parametrize("train", [False, True])
def test_the_vocabulary_says_which_row_is_whose(pair, train):
    """Rows shuffled in both files of a column are the same embedding; the order of the table's categories says nothing."""
    one = pair(made_up(), model={"TRAIN_EMBEDDINGS": train}).run()
    before = one.predict(one.table), one.embed(one.table)
    weights, vocabulary = one.matrix("c")
    order = [0, *np.random.default_rng(1).permutation(np.arange(1, len(weights)))]  # row 0 is unknown by its place
    assert order != sorted(order)
    np.save(one.embeddings / "c.npy", weights[order])
    vocabulary.iloc[order].to_csv(one.embeddings / "c.csv", index=False, quoting=csv.QUOTE_NONNUMERIC)
    pd.testing.assert_frame_equal(one.embed(one.table), before[1])
    one.run_model()
    np.testing.assert_allclose(one.predict(one.table), before[0], rtol=1e-3, atol=1e-3)


# No test row reaches a fitted thing


def fitted(one):
    """Return all that both scripts fit and save, as bytes by name: vectors, vocabularies, scales, every weight."""
    model = one.trained_model()
    with zipfile.ZipFile(one.embeddings / "embed_model.keras") as archive:
        things = {f"model: {name}": archive.read(name) for name in archive.namelist() if name.startswith(("config", "assets"))}
    things["model: config.json"] = re.sub(rb'"shared_object_id": \d+', b"", things["model: config.json"])  # an address
    things |= {f"weight {i}": weight.tobytes() for i, weight in enumerate(model.get_weights())}
    things["page"] = json.dumps(one.base.read_look(one.embeddings)["columns"]).encode()
    return things | {name: content for name, content in one.saved().items() if name.endswith((".npy", ".csv"))}


def with_test_rows_rewritten(table, test):
    """Return the table with the cells of its test rows replaced: other categories, huge numbers, another target."""
    other = table.copy()
    other.loc[test, "c"] = "only in test"
    other.loc[test, "d"] = np.where(table.loc[test, "y"] > 8, "high", "low")  # a strong feature, in test rows only
    other.loc[test, "x"] = 1e6
    other.loc[test, "y"] = -1000 - table.loc[test, "y"]
    return other


def what_test_rows_change(pair, leak=None):
    """Return the names of the fitted things that differ when nothing but the test rows' cells does."""
    pairs = [pair(made_up())]
    pairs.append(pair(with_test_rows_rewritten(pairs[0].table, pairs[0].test_rows())))
    for one in pairs:
        if leak:
            leak(one)
        one.run()
    first, second = map(fitted, pairs)
    return {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}


def test_no_test_row_reaches_a_fitted_thing(pair):
    assert what_test_rows_change(pair) == set()


def test_test_rows_do_not_order_equally_frequent_categories(pair):
    """The order of a vocabulary decides which random start a category gets, and a table's codes are those of all its rows."""
    base = pair(made_up()).base
    for in_test in "abcd":
        cells = [in_test, *"cabba"]
        table = pd.DataFrame({"c": pd.Categorical(cells, categories=list(dict.fromkeys(cells)))})
        vocabulary = base.build_vocabularies(table, np.arange(1, 6))["c"]
        assert list(zip(vocabulary["category"][1:], vocabulary["count"][1:])) == [("a", 2), ("b", 2), ("c", 1)]


def test_a_planted_leak_is_caught(pair):
    """The check above must see it when a third of the test rows is trained on: in vectors, vocabulary, scales, weights."""

    def leak(one):
        split = one.base.split

        def leaky(*arguments):
            part = split(*arguments)
            part[np.flatnonzero(part == one.base.TEST)[::3]] = one.base.TRAINING
            return part

        one.base.split = leaky

    changed = what_test_rows_change(pair, leak)
    assert {"c.npy", "c.csv", "d.npy", "d.csv", "model: config.json"} <= changed
    assert any(name.startswith("weight") for name in changed)


def test_a_target_of_noise_cannot_be_predicted(pair, capsys, graphs):
    """A category per row, and columns that give the target away in test rows alone: no figure beats the mean."""
    random, rows = np.random.default_rng(3), 3000
    y = random.normal(size=rows)
    one = pair(pd.DataFrame({"c": [f"row {i}" for i in range(rows)], "d": random.choice(list("abc"), rows), "x": random.normal(size=rows), "y": y}))
    test = one.test_rows()
    one.table.loc[test, "x"] = 3 * y[test]
    one.table["e"] = np.where(test, [f"{round(value)}" for value in y], "nothing")
    one.write("table.csv", one.table.to_csv(index=False))
    one.edit({"CATEGORICAL_COLUMNS": ["c", "d", "e"], "EPOCHS": 3}, {"EPOCHS": 3})
    one.run()
    figures = report(capsys.readouterr().out)
    assert len(figures) == 4
    mean = figures.pop("mean of the training rows")[0]
    # 300 test rows: a guess of standard deviation 0.2 around the mean beats it by chance by less than 5 %
    assert all(figure[0] > 0.95 * mean for figure in figures.values()), (mean, figures)


def test_boosting_answers_by_its_best_iteration(pair, monkeypatch):
    """Fit each number of iterations by itself: with a target of pure noise the best is not the last."""
    table = made_up(600).assign(y=np.random.default_rng(1).choice(["a", "b"], 600))
    one = pair(table, {"TASK": "binary"})
    monkeypatch.chdir(one.folder)
    rows = one.base.load_rows(["c", "d"], ["x"])
    numbers = rows.table[["x"]]
    vocabularies = one.base.build_vocabularies(rows.table[["c", "d"]], rows.training)
    ids = one.base.to_ids(rows.table, vocabularies)
    features, target = np.column_stack([ids, numbers]), rows.target
    parts = rows.training, rows.validation, rows.test
    answers, losses = [], []
    for strength, iterations in itertools.product((0, 10), range(1, 11)):
        booster = HistGradientBoostingClassifier(
            max_iter=iterations, l2_regularization=strength, early_stopping=False, categorical_features=[0, 1],
            random_state=one.base.SEED,
        ).fit(features[parts[0]], target[parts[0]])  # fmt: skip
        answers.append(booster.predict_proba(features[parts[2]])[:, 1])
        losses.append(log_loss(target[parts[1]], booster.predict_proba(features[parts[1]])[:, 1]))
    assert np.argmin(losses) % 10 < 9
    np.testing.assert_allclose(one.model.boost(ids, numbers, rows), answers[np.argmin(losses)], rtol=1e-6)


def test_boosting_bears_a_rare_class(pair, monkeypatch):
    """With four rows of one class scikit-learn's booster diverges at its usual rate, and not at a third of it."""
    random = np.random.default_rng(2)
    numbers = pd.DataFrame(random.normal(size=(4000, 4)), columns=["x", "n", "m", "o"])
    kinds = random.choice(6, 4000, p=[0.4, 0.25, 0.2, 0.1, 0.0475, 0.0025])
    numbers["x"] += 2 * kinds
    one = pair(numbers.assign(c="same", y=kinds), {"TASK": "multiclass", "CATEGORICAL_COLUMNS": ["c"]})
    monkeypatch.setattr(one.model, "HistGradientBoostingClassifier", HistGradientBoostingClassifier)  # of all iterations
    rows = one.call(one.base.load_rows, ["c"], [*numbers])
    answer = one.model.boost(pd.DataFrame({"c": np.ones(4000, int)}), rows.table[[*numbers]], rows)
    x, parts = numbers.to_numpy(), (rows.training, rows.validation, rows.test)
    slow = HistGradientBoostingClassifier(learning_rate=0.03, max_iter=1000, early_stopping=True, random_state=0)
    slow.fit(x[parts[0]], rows.target[parts[0]], X_val=x[parts[1]], y_val=rows.target[parts[1]])
    loss, wanted = (log_loss(rows.target[parts[2]], each, labels=range(6)) for each in (answer, slow.predict_proba(x[parts[2]])))
    assert loss < 1.1 * wanted


def test_boosting_knows_every_class(pair, monkeypatch, capsys):
    """Two classes as "multiclass" beside many categories; three classes, of which the sample of the rows has no rare one."""
    random = np.random.default_rng(0)
    table = pd.DataFrame({"c": [f"c{i}" for i in range(300)] * 2, "d": "same", "x": random.normal(size=600), "y": random.choice(["a", "b"], 600)})
    one = pair(table, {"TASK": "multiclass"}).run()
    assert len(report(capsys.readouterr().out)["gradient boosting (scikit-learn)"]) == 2
    training = np.flatnonzero(one.base.split_rows(600) == one.base.TRAINING)
    table.loc[training[:3], "y"] = "rare"
    one = pair(table, {"TASK": "multiclass"})
    monkeypatch.setattr(one.base, "sample", lambda rows, limit: np.setdiff1d(rows, training[:3]))
    one.run()
    assert len(report(capsys.readouterr().out)["gradient boosting (scikit-learn)"]) == 2


# Categories and names


def test_every_category_is_the_text_in_the_file(pair):
    """01 is not 1, NA is a value, an empty cell is missing and has a row of its own; the counts are of training rows."""
    texts = ["1", "01", "1.0", "NA", "nan", "None", "", " ", "Zürich", "東京", "é", "e\u0301", "İ", "<unknown>", "True", "TRUE"]
    table = pd.DataFrame({"c": texts * 25, "d": "same", "x": 1.0, "y": np.arange(400.0) % 16})
    one = pair(table)
    one.run_base()
    weights, vocabulary = one.matrix("c")
    assert sorted(vocabulary["category"][1:]) == sorted(texts)
    training = one.base.split_rows(len(table)) == one.base.TRAINING
    counts = table["c"][training].value_counts()
    assert vocabulary["count"][1:].tolist() == counts[vocabulary["category"][1:]].tolist()
    assert vocabulary["count"][0] == 0
    row = {category: i for i, category in enumerate(vocabulary["category"]) if i}
    frame = pd.DataFrame({"c": [*texts, "never seen"], "d": "same"})
    vectors = one.embed(frame).filter(regex="^c_").to_numpy()
    np.testing.assert_array_equal(vectors, weights[[*(row[text] for text in texts), 0]])
    assert len(np.unique(vectors, axis=0)) == 17


def test_a_missing_cell_that_training_never_saw_is_unknown(pair):
    one = pair(made_up())
    one.run()
    frame = one.table[:3].assign(c=["", None, "never seen"], d="left", x=0.0)
    answers, vectors = one.predict(frame), one.embed(frame).filter(regex="^c_").to_numpy()
    np.testing.assert_allclose(answers, answers[0], rtol=1e-6)
    np.testing.assert_array_equal(vectors, np.repeat(one.matrix("c")[0][:1], 3, axis=0))


NAMES = [  # two of them alike but for what a file name cannot hold or tell apart
    "with space", "a/b", "a\\b", "a%2Fb", "../../up", "..", ".", "/tmp/absolute", "C:\\d", "a:b", "Zürich", "東京", "🚲",
    'say "hi"', "it's", "Case", "case", "CASE", "x" * 300, "x" * 299 + "y", "con", "tab\there", "new\nline", "run.json", "run",
    "embed_model.keras", "projector", ".saving", ".lock", "*?<>|", " ", "c.npy", "c", "%", "$(x)", "-rf", "a\u0301", "á",
]  # fmt: skip


def test_any_column_name_has_files_of_its_own_inside_the_folder(pair):
    """Each column has one category of its own, so that a file shared by two columns would be seen."""
    random = np.random.default_rng(0)
    table = pd.DataFrame({name: random.choice([f"of {i}", "other"], 60) for i, name in enumerate(NAMES)})
    table["é è/x"], table["y"] = random.normal(size=60), random.normal(size=60)
    one = pair(table, {"CATEGORICAL_COLUMNS": NAMES}, {"NUMERICAL_COLUMNS": ["é è/x"]})
    outside = {file for file in one.folder.parent.rglob("*") if one.embeddings not in file.parents}
    one.run()
    assert {file for file in one.folder.parent.rglob("*") if one.embeddings not in file.parents} - outside <= {one.embeddings}
    stems = [name[:-4] for name in one.saved() if name.endswith(".npy")]
    assert len(stems) == len({stem.casefold() for stem in stems}) == len(NAMES)  # also where files ignore case
    first = {one.matrix(stem)[1]["category"][1:].sort_values().iloc[0] for stem in stems}
    assert first == {f"of {i}" for i in range(len(NAMES))}
    assert np.isfinite(one.predict(table)).all()
    assert len(one.embed(table)) == 60


def columns_of(base, vectors, counts, means=None):
    """Return what describe_columns says of one column of categories a, b, c ..."""
    names = [chr(97 + i) if i < 26 else f"z{i}" for i in range(len(vectors))]
    vocabulary = pd.DataFrame({"category": ["<unknown>", *names], "count": [0, *counts]})
    weights = np.vstack([np.zeros_like(vectors[:1]), vectors])
    (column,) = base.describe_columns([weights], {"column": vocabulary}, [means if means is None else np.array(means)])
    return column


def test_the_nearest_categories_are_named_first_if_they_have_enough_rows(pair, capsys):
    base = pair(made_up()).base
    angles = np.arange(11) * 0.5  # a ring; of few rows are b and k, which are the nearest to a
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 3
    counts, means = [90, 19, *[80] * 8, 3], np.arange(11.0) * 100
    column = columns_of(base, vectors, counts, means)
    distances = np.linalg.norm(vectors[:, None] - vectors, axis=2) + 100 * np.eye(11)
    for i, near in enumerate(column["near"]):
        enough = [k for k in np.argsort(distances[i], kind="stable") if counts[k] >= 20 and k != i]
        np.testing.assert_allclose(distances[i][near], distances[i][enough[:5]], rtol=1e-5)
    base.print_nearest({"colour": "mean y", "columns": [column]})
    lines = capsys.readouterr().out.splitlines()[1:]
    assert re.match(r"  column  a 0 \(90 rows\): c 200\.0, d 300\.0, j 900\.0", lines[0]) and "b?" not in lines[0]
    base.print_nearest({"colour": "mean y", "columns": [columns_of(base, vectors, [90, 80, *[5] * 9], means)]})
    assert "a 0 (90 rows): b 100.0, c? 200.0" in capsys.readouterr().out


def test_vectors_along_one_line_are_printed_in_their_order(pair, capsys):
    base, random = pair(made_up()).base, np.random.default_rng(0)
    place = random.permutation(14.0 * np.arange(14))
    vectors = place[:, None] * [-1.0, 2.0, 1.0] + random.normal(scale=0.5, size=(14, 3))
    column = columns_of(base, vectors, [50] * 14, means=place)
    assert column["line"] > 0.9 and np.corrcoef(column["x"], place)[0, 1] > 0.99
    base.print_nearest({"colour": "mean y", "columns": [column]})
    order = [chr(97 + i) for i in np.argsort(place)]
    said = capsys.readouterr().out
    assert re.findall(r"\b([a-n])\b [\d.]+", said.split("low to high: ")[1]) == [*order[:3], *order[-3:]]


def test_the_map_says_how_it_was_laid_out(pair):
    """Two planted factors are principal components, ten are not; one, two or three categories have places as well."""
    base, random = pair(made_up()).base, np.random.default_rng(0)
    plane = random.normal(size=(60, 2)) @ random.normal(size=(2, 12))
    column = columns_of(base, plane, [50] * 60)
    assert column["layout"] == "principal components" and column["share"] == pytest.approx(1, abs=1e-4)
    there = np.column_stack([column["x"], column["y"]])
    apart = [np.linalg.norm(points[:, None] - points, axis=2) for points in (plane, there)]
    np.testing.assert_allclose(*apart, atol=1e-2)
    many = columns_of(base, random.normal(size=(60, 12)), [50] * 60)
    assert many["layout"] == "t-SNE" and many["share"] < 0.6 and many["means"] is None
    for count, nearest in [(1, 0), (2, 1), (3, 1), (4, 2), (11, 5)]:  # not all of the others: that would say nothing
        few = columns_of(base, random.normal(size=(count, 4)), [50] * count, means=np.arange(count))
        assert len(few["x"]) == count and np.isfinite([few["x"], few["y"]]).all()
        assert {len(near) for near in few["near"]} == {nearest}


def test_means_of_categories_are_those_of_their_training_rows(pair):
    for task in ("regression", "log", "binary"):
        table, settings = of_task(task)
        one = pair(table, settings)
        one.run_base()
        train = table[one.base.split_rows(len(table)) == one.base.TRAINING]
        y = train["y"] if task != "binary" else train["y"] == sorted(set(train["y"]))[1]
        column = one.base.read_look(one.embeddings)["columns"][0]
        np.testing.assert_allclose(column["means"], y.groupby(train["c"]).mean()[column["categories"]], rtol=1e-3)


def test_what_a_column_is_worth_is_seen(pair, graphs):
    """c moves the target three times as much as x does, d not at all; against shuffled columns of predict."""
    one = pair(made_up(1000), {"EPOCHS": 4}, {"EPOCHS": 10}).run()
    worth = {each["column"]: each for each in one.base.read_look(one.embeddings)["worth"]}
    assert list(worth) == ["c", "x", "d"] and abs(worth["d"]["rise"]) < 0.05 * worth["x"]["rise"]
    test = one.table[one.test_rows()]
    def error(frame):
        return np.sqrt(np.mean((one.predict(frame) - test["y"]) ** 2))

    random = np.random.default_rng(1)
    for column in ("c", "x"):
        shuffled = error(test.assign(**{column: random.permutation(test[column])}))
        assert worth[column]["figure"] == pytest.approx(shuffled, rel=0.15)
        assert worth[column]["figure"] - worth[column]["rise"] == pytest.approx(error(test), rel=1e-2)


def test_the_verdict_tells_chance_from_a_difference(pair):
    one = pair(made_up())
    random, model = np.random.default_rng(0), one.model
    target = random.normal(size=1000).astype("float32")
    data = rows_of(one.base, target=target, training=[], test=np.arange(1000), target_info={"mean": 0, "std": 1, "log": False})

    def said(ours, theirs):
        answers = {model.MEAN: np.zeros(1000), model.BOOSTING: target + theirs, model.FINAL: target + ours}
        report = {name: one.base.score(data, answer) for name, answer in answers.items()}
        return model.verdict(report, one.base.bootstrap(answers, data))

    noise = random.normal(scale=0.1, size=1000)
    assert re.fullmatch(r"The error \(RMSE\) of embeddings .* the mean and 20.0% below that of gradient boosting; .* would hardly turn that round\.", said(0.8 * noise, noise))
    assert re.match(r"The error \(RMSE\) .* and 10.0% above that of gradient boosting; .* hardly turn", said(1.1 * noise, noise))
    other = random.normal(scale=0.1, size=1000)
    assert "might turn" in said(noise, 1.001 * other * noise.std() / other.std())
    spikes = np.where(np.arange(1000) < 5, 1.5, 0.0)  # few large errors: worse by RMSE, better by MAE
    sentence = said(0.5 * noise + spikes, noise)
    assert "By MAE it is the other way round" in sentence
    assert said(3 + noise, 3 + noise).startswith("Nothing beats the mean")
    barely = np.where(np.arange(1000) < 3, 0, -target)  # the mean, but for three rows
    assert said(barely, barely).startswith("Nothing beats the mean")


def test_columns_may_be_called_as_keras_calls_its_operations(pair):
    names = ["mean", "cast", "a b", "column_0", "1_column", "stack_1", "cast_1", "functional_1", "string_lookup", "rescaling_2", "get_item"]
    table = made_up(60).rename(columns={"c": "stack", "x": "mean"}).assign(**dict.fromkeys(names[1:], 1.0))
    one = pair(table, {"CATEGORICAL_COLUMNS": ["stack", "d"]}, {"NUMERICAL_COLUMNS": names}).run()
    assert np.isfinite(one.predict(table)).all()


# Tables of many kinds, end to end


def binary(table):
    return table.assign(y=np.where(table["y"] > 8, "yes", "no"))


def multiclass(table):
    return table.assign(y=pd.cut(table["y"], [-99, 5, 10, 99], labels=False).map(["klein", "mittel größe", "0"].__getitem__))


def dated(table):
    return table.assign(date=np.random.default_rng(1).choice(pd.date_range("2024-01-01", periods=90).strftime("%Y-%m-%d"), len(table)))


def same(table):
    return table


@pytest.mark.parametrize(
    "change, base, model",
    [
        pytest.param(same, {"TASK": "regression"}, {}, id="300 rows"),
        pytest.param(same, {}, {"NUMERICAL_COLUMNS": []}, id="no numerical columns"),
        pytest.param(same, {"CATEGORICAL_COLUMNS": ["c"]}, {"TRAIN_EMBEDDINGS": False}, id="one categorical column"),
        pytest.param(binary, {"TASK": "binary"}, {}, id="binary"),
        pytest.param(multiclass, {"TASK": "multiclass"}, {}, id="multiclass with text labels"),
        pytest.param(dated, {"SPLIT_COLUMN": "date"}, {}, id="split by a date"),
        pytest.param(same, {}, {"CATEGORICAL_COLUMNS": ["c"]}, id="a shorter list"),
    ],
)
def test_a_planted_effect_is_found(pair, capsys, graphs, change, base, model):
    one = pair(change(made_up()), {**base, "EPOCHS": 8}, {**model, "EPOCHS": 8}).run()
    figures = report(capsys.readouterr().out)
    assert figures["embeddings + numerical columns"][0] < 0.7 * figures["mean of the training rows"][0], figures
    assert len(one.predict(one.table)) == 300


def test_the_largest_dates_are_held_out(pair, capsys):
    """The test rows are those of the latest dates: another target there changes nothing that was fitted."""
    table = dated(made_up())
    base = pair(table, {"SPLIT_COLUMN": "date"}).base
    parts = base.split_rows(300, pd.Categorical(table["date"]))
    latest = [table["date"][parts == part].agg(["min", "max"]).tolist() for part in (0, 1, 2)]
    assert latest[0][1] < latest[1][0] <= latest[1][1] < latest[2][0]
    assert all(20 <= (parts == part).sum() <= 40 for part in (1, 2))
    with pytest.raises(base.InputError, match="date"):
        base.split_rows(300)  # would be other rows than those that the scripts held out


def test_test_rows_of_one_class_have_no_auc(pair):
    base = pair(made_up(), {"TASK": "binary"}).base
    kept = {"weights": np.ones(2), "test": [0, 1], "target_info": {"classes": ["a", "b"]}}
    figures = [base.score(types.SimpleNamespace(target=np.array(target), **kept), np.array([0.5, 0.75])) for target in ([1, 1], [0, 1])]
    assert figures[0] == {"log loss": pytest.approx(np.log([2, 4 / 3]).mean())}
    assert figures[1] == {"log loss": pytest.approx(np.log([2, 4 / 3]).mean()), "AUC": 1}


def test_row_0_is_trained_by_the_cells_that_are_hidden(pair, monkeypatch):
    """Without the prior nothing else can move it: it stays at its start where no cell is hidden."""
    starts, fit = [], keras.Model.fit
    monkeypatch.setattr(keras.Model, "fit", lambda model, *a, **k: (starts.append(embedding_weights(model)), fit(model, *a, **k))[1])
    one = pair(made_up())
    one.base.PRIOR = 0
    for hides in (True, False):
        if not hides:
            one.base.hide_some = lambda *_: None
        starts.clear()
        one.run_base()
        for column, start in zip(["c", "d"], starts[0], strict=True):
            assert np.array_equal(one.matrix(column)[0][0], start[0]) != hides, column


def test_row_0_answers_as_a_model_without_the_column(pair, capsys, graphs):
    """The test rows hold categories hidden from training; both figures must be no worse than without the column."""
    random, rows = np.random.default_rng(0), 3000
    c, d, x = random.integers(0, 40, rows), random.integers(0, 20, rows), random.normal(size=rows)
    effects = random.normal(size=40), random.normal(size=20)
    y = 10 + effects[0][c] + effects[1][d] + 0.5 * x + random.normal(scale=0.3, size=rows)
    hidden = np.isin(c, [3, 11, 19, 27]).astype(int)  # a tenth; SPLIT_COLUMN holds out the largest values
    order = np.where(hidden, 9, random.integers(0, 9, rows))
    order[np.flatnonzero(hidden)[rows // 10 :]] = 0
    table = pd.DataFrame({"c": c, "d": d, "x": x, "y": y, "order": order}).astype({"c": str, "d": str})
    table = table.drop(np.flatnonzero(hidden & (order == 0))).reset_index(drop=True)
    figures = []
    for columns in (["c", "d"], ["d"]):
        pair(table, {"CATEGORICAL_COLUMNS": columns, "SPLIT_COLUMN": "order", "EPOCHS": 8}, {"EPOCHS": 8}).run()
        figures.append(report(capsys.readouterr().out))
    for name in ("categorical columns alone (build_embeddings.py)", "embeddings + numerical columns"):
        assert figures[0][name][0] < 1.1 * figures[1][name][0], figures
    assert figures[1]["embeddings + numerical columns"][0] < figures[1]["mean of the training rows"][0], "nothing was learned"


# Same bits, real processes and other backends


def processes(one, **environment):
    """Run both scripts as a user does; return what they printed, without seconds and progress."""
    printed = ""
    for script in ("build_embeddings", "build_embed_model"):
        done = subprocess.run(
            [sys.executable, f"{script}.py"], cwd=one.folder, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
        )
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    return re.sub(r"\d+(\.\d+)? ?(m?s)\b.*", "", printed)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_trains_and_tensorflow_predicts(pair, backend):
    """The report's figure of the model that was trained elsewhere is that of predict here."""
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    one = pair(made_up(), {"EPOCHS": 3}, {"EPOCHS": 3})
    printed = report(processes(one, KERAS_BACKEND=backend))["embeddings + numerical columns"]
    test = one.test_rows()
    assert printed[0] == pytest.approx(np.sqrt(np.mean((one.predict(one.table) - one.table["y"])[test] ** 2)), rel=2e-3)


def test_two_devices_learn_what_one_does(pair):
    """With JAX, each device computing half of every batch; NPROC gives its devices threads that need not wait for each other."""
    pytest.importorskip("jax", reason="JAX is not installed")
    one, two = (pair(made_up(), {"BATCH_SIZE": 32}) for _ in range(2))
    processes(one, KERAS_BACKEND="jax")
    processes(two, KERAS_BACKEND="jax", XLA_FLAGS="--xla_force_host_platform_device_count=2", NPROC="8")
    for column in ("c", "d"):
        np.testing.assert_allclose(one.matrix(column)[0], two.matrix(column)[0], atol=1e-5)
    np.testing.assert_allclose(one.predict(one.table), two.predict(one.table), rtol=1e-3)


def test_one_seed_gives_one_result_and_another_seed_another(pair):
    """Two processes, for Python's hashes of text differ from one to the next."""
    table = made_up()
    first, again = pair(table), pair(table)
    assert processes(first) == processes(again)
    vectors = {name: content for name, content in first.saved().items() if name.endswith((".npy", ".csv"))}
    assert len(vectors) == 4
    assert {name: again.saved()[name] for name in vectors} == vectors
    with zipfile.ZipFile(first.embeddings / "embed_model.keras") as archive:
        assert "model.weights.h5" in archive.namelist()
    np.testing.assert_array_equal(first.predict(table), again.predict(table))
    again.edit({"SEED": 1})
    again.run_base()
    assert again.saved()["c.npy"] != first.saved()["c.npy"]


def test_importing_a_script_has_no_side_effect(pair):
    one = pair(made_up())
    assert sorted(file.name for file in one.folder.iterdir()) == ["build_embed_model.py", "build_embeddings.py", "table.csv"]


# Geography


def test_destinations_learn_where_they_are(pair, compiled):
    """Air time comes from origin and destination, so dest's vectors must hold the distance, and with it the longitude."""
    flights = pd.read_csv(ROOT / "data/flights.csv.gz", dtype=str, keep_default_na=False).sample(60_000, random_state=0)
    columns = ["month", "weekday", "hour", "carrier", "origin", "dest"]
    one = pair(flights, {"TARGET_COLUMN": "air_time", "CATEGORICAL_COLUMNS": columns, "EPOCHS": 3})
    one.run_base()
    weights, vocabulary = one.matrix("dest")
    distance = flights.astype({"distance": float}).groupby("dest")["distance"].mean()
    longitude = pd.read_csv(ROOT / "data/airports.csv").set_index("faa")["lon"]
    often = vocabulary.index[(vocabulary["count"] >= 50) & vocabulary["category"].isin(longitude.index)]
    shuffled = np.random.default_rng(0).permutation(weights[often])
    folds = KFold(5, shuffle=True, random_state=0)
    for truth in (distance, longitude):
        scores = [
            cross_val_score(RidgeCV(np.logspace(-4, 3, 15)), vectors, truth[vocabulary["category"][often]], cv=folds).mean()
            for vectors in (weights[often], shuffled)
        ]
        assert scores[0] > 0.7 and scores[0] > scores[1] + 0.5, scores
