"""What people's own files hold, and what they give to predict: read rightly, or said in a line - never wrong in silence."""

import json
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import made_up, report, rows_of
from sklearn.metrics import log_loss, roc_auc_score

MILLISECONDS = 1_707_954_127_790  # a time as many programs write it


def codes(rows=600, seed=0):
    """Return a table whose category alone decides the target: a word for each of six, and a truth value."""
    random = np.random.default_rng(seed)
    digit, truth = random.integers(0, 6, rows), random.integers(0, 2, rows)
    return pd.DataFrame({"c": [f"Kind {i}" for i in digit], "d": truth, "x": 1.0, "y": 3.0 * digit + 5 * truth})


# What a column of categories holds


@pytest.mark.parametrize("written", [("False", "True"), ("FALSE", "TRUE"), ("0", "1"), ("false", "true")])
def test_truth_values_are_read_whatever_way_they_are_written(pair, written):
    table = codes(60)
    one = pair(table.assign(d=table["d"].map(written.__getitem__))).run()
    frame = one.table[:20]
    truth = table["d"][:20]
    forms = [truth, truth.astype(bool), truth.astype(float), truth.map(["False", "True"].__getitem__), truth.map(["FALSE", "TRUE"].__getitem__)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = one.predict(frame), one.embed(frame)
        assert len(np.unique(expected[1].filter(regex="^d_"), axis=0)) == 2
        for cells in [*forms, truth.astype(bool).astype("boolean"), truth.astype(str)]:
            np.testing.assert_array_equal(one.predict(frame.assign(d=cells)), expected[0])
            pd.testing.assert_frame_equal(one.embed(frame.assign(d=cells)), expected[1])


def test_categories_that_differ_in_spelling_alone_are_named_while_training(pair, capsys):
    table = codes(300).astype({"d": str})
    table.loc[:9, "c"], table.loc[10:15, "c"], table.loc[:4, "d"] = "Kind 1 ", "KIND 1", "1.0"
    one = pair(table.assign(e=np.where(np.arange(300) % 2, "Zoë", "Zoe\u0308")), {"CATEGORICAL_COLUMNS": ["c", "d", "e"]})
    one.run_base()
    lines = {line.split(" differ ")[0].split()[-1]: line for line in capsys.readouterr().out.splitlines() if "in spelling alone" in line}
    assert set(lines) == set("cde")
    training = one.table[one.base.split_rows(300) == one.base.TRAINING]
    assert "'Kind 1 '" in lines["c"] and f"{training['c'].isin(['Kind 1 ', 'KIND 1']).sum()} rows" in lines["c"]
    assert "'1.0'" in lines["d"] and f"{(training['d'] == '1.0').sum()} rows" in lines["d"]
    other = pair(codes(300).assign(c=["05", "5"] * 150))
    other.run_base()
    assert "in spelling alone" not in capsys.readouterr().out, "05 may well be another code than 5"


@pytest.mark.parametrize("change", [str.upper, " {} ".format, "{}\u200b".format])
def test_other_spellings_for_predict_and_embed_are_warned_of(pair, change):
    one = pair(codes(200)).run()
    frame = one.table[:50]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one.predict(frame)
        one.embed(frame.assign(c=[*["never seen"] * 2, *frame["c"][2:]]))  # a few may well be new
    spelt = frame.assign(c=[change(cell) for cell in frame["c"][:25]] + [*frame["c"][25:]])
    for use in (one.predict, one.embed):
        with pytest.warns(UserWarning, match=r"'c': 50% .*unknown.*KIND|'c': 50% .*unknown.*Kind"):
            use(spelt)


def test_the_share_of_unknown_cells_in_the_test_rows_is_reported_and_is_no_news_later(pair, capsys):
    table = codes(600)
    base = pair(table).base
    test = np.flatnonzero(base.split_rows(600) == base.TEST)
    table.loc[test[:18], "c"] = [f"new {i}" for i in range(18)]
    one = pair(table).run()
    printed = capsys.readouterr().out
    assert len([line for line in printed.splitlines() if "30.0%" in line and "unknown" in line]) == 2, "one line in each script"
    assert "of the cells of d" not in printed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one.predict(table.iloc[test])


def test_names_that_a_server_can_use_stand_in_run_json(pair):
    names = ["length (cm)", "größe", "2nd", "_x", "column_3", "plain"]
    one = pair(made_up(60).assign(**dict.fromkeys(names, 1.0)), model={"NUMERICAL_COLUMNS": ["x", *names]}).run()
    told = json.loads((one.embeddings / "run.json").read_text())["inputs"]
    assert list(told) == ["c", "d", "x", *names] and told["plain"] == "plain"
    assert all(name.isascii() and name.isidentifier() and name[0].isalpha() for name in told.values())
    exported = one.folder / "served"
    one.trained_model().export(exported, verbose=False)
    signature = __import__("tensorflow").saved_model.load(exported).signatures["serving_default"]
    assert set(signature.structured_input_signature[1]) == set(told.values())


# What a column of numbers holds


def test_times_in_milliseconds_keep_their_precision(pair, capsys, graphs):
    """Some 3,000 seconds: float32 would make five values of them. Boosting sees them as well."""
    random = np.random.default_rng(0)
    seconds = random.integers(0, 600, 3000)
    table = codes(3000).assign(x=MILLISECONDS + 1000 * seconds)
    table["y"] = np.where(seconds % 100 < 50, 0.0, 10.0) + random.normal(scale=0.1, size=3000)
    one = pair(table, {"EPOCHS": 1}, {"EPOCHS": 20, "CATEGORICAL_COLUMNS": ["c"]}).run()
    figures = report(capsys.readouterr().out)
    mean = figures["mean of the training rows"][0]
    assert figures["embeddings + numerical columns"][0] < 0.6 * mean and figures["gradient boosting (scikit-learn)"][0] < 0.6 * mean
    answers = one.predict(table)
    assert np.sqrt(np.mean((answers - table["y"]) ** 2)) < 0.6 * mean
    np.testing.assert_array_equal(one.predict(table.astype({"x": str})), answers)


def test_one_zero_among_times_does_not_cost_their_precision(pair):
    """What is missing is often written as 0 or -1; by the range of all cells float32 would do."""
    times = MILLISECONDS + np.random.default_rng(0).integers(0, 120_000, 600)
    times[7] = 0
    one = pair(made_up(600).assign(t=times))
    data = one.call(one.base.load_rows, ["c"], ["t"])
    assert data.table["t"].nunique() == len(np.unique(times)) and list(data.centres) == ["t"]


def test_numbers_that_float32_holds_are_not_centred(pair):
    one = pair(made_up(300).assign(price=np.arange(300) / 100, code=range(300)))
    for column in ("x", "price", "code"):
        data = one.call(one.base.load_rows, ["c"], [column])
        assert data.centres == {}
        np.testing.assert_array_equal(data.table[column], one.table[column].astype("float32"))


def test_blank_cells_of_a_number_are_missing(pair):
    table = made_up(60).astype({"x": object})
    empty, blank = (pair(table.assign(x=[cell, *table["x"][1:]])) for cell in ("", "  "))
    read = [one.call(one.base.load_rows, ["c"], ["x"]).table["x"] for one in (empty, blank)]
    assert np.isnan(read[1][0])
    np.testing.assert_array_equal(*read)
    blank.run()
    np.testing.assert_array_equal(blank.predict(blank.table[:1]), blank.predict(blank.table[:1].assign(x=None)))


# The target


def test_extreme_values_of_the_target_are_named_and_not_learned(pair, capsys, graphs):
    table = made_up(3000)
    base = pair(table).base
    rows = np.flatnonzero(base.split_rows(3000) == base.TRAINING)[[5, 50, 500, 1500]]
    clean = table["y"].copy()
    table.loc[rows, "y"] = 99_999_999
    one = pair(table, {"EPOCHS": 4}, {"EPOCHS": 4}).run()
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if "extreme" in line)
    assert all(f"line {row + 2})" in line for row in rows) and "99999999" in line
    errors = one.predict(table) - clean
    assert np.sqrt(np.mean(errors**2)) < 0.5 * clean.std()
    figures = report(printed)
    assert figures["gradient boosting (scikit-learn)"][0] < 2 * clean.std()


def test_an_extreme_value_in_a_test_row_counts_in_the_report(pair, capsys):
    table = made_up(300)
    base = pair(table).base
    test = np.flatnonzero(base.split_rows(300) == base.TEST)
    table.loc[test[0], "y"] = 1e6
    pair(table).run()
    assert report(capsys.readouterr().out)["embeddings + numerical columns"][0] == pytest.approx(1e6 / np.sqrt(30), rel=1e-3)


@pytest.mark.parametrize("log", [False, True])
def test_a_long_tail_is_not_extreme(pair, capsys, log):
    """Prices and sales: the largest of 10,000 is hundreds of times the median."""
    y = np.random.default_rng(0).lognormal(3, 1.5, 10_000)
    one = pair(pd.DataFrame({"c": ["a", "b"] * 5000, "d": "e", "x": 1.0, "y": y}), {"LOG_TARGET": log})
    data = one.call(one.base.load_rows, ["c"], ["x"])
    assert "extreme" not in capsys.readouterr().out
    values = np.log1p(y) if log else y
    np.testing.assert_allclose(data.target, (values - values[data.training].mean()) / values[data.training].std(), rtol=1e-4, atol=1e-5)


def test_classes_that_look_missing_or_double_are_named(pair, capsys):
    table = made_up(300).assign(y=["yes", "no", " yes", "No", "NA", "maybe"] * 50)
    pair(table, {"TASK": "multiclass"}).run_base()
    line = next(line for line in capsys.readouterr().out.splitlines() if "missing or double" in line)
    assert all(repr(label) in line for label in ("yes", " yes", "no", "No", "NA")) and "maybe" not in line
    pair(table.assign(y=["yes", "no", "NaN's"] * 100), {"TASK": "multiclass"}).run_base()
    assert "missing or double" not in capsys.readouterr().out
    one = pair(table.assign(y=["yes", "no", "no "] * 100), {"TASK": "binary"})
    assert "'no', 'no ', 'yes'" in one.sentence(one.run_base)


def test_classes_without_training_rows_are_named_all_at_once(pair):
    table = made_up(300).assign(y=["a", "b"] * 150)
    base = pair(table).base
    held = np.flatnonzero(base.split_rows(300) != base.TRAINING)[:4]
    table.loc[held, "y"] = ["rare 0", "rare 1", "rare 2", "rare 1"]
    one = pair(table, {"TASK": "multiclass"})
    said = one.sentence(one.run_base)
    assert all(f"'rare {i}'" in said for i in range(3))


def test_test_rows_without_a_class_are_said_to_have_no_auc(pair, capsys):
    table = made_up(300)
    test = pair(table).test_rows()
    table["y"] = np.where(test | (table["y"] > 8), "no", "yes")
    pair(table, {"TASK": "binary"}).run_base()
    assert "no test row has the class 'yes'" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_classify_answers_classes_as_the_file_writes_them(pair, task, graphs):
    table = made_up(300)
    cuts = [-99, 8, 99] if task == "binary" else [-99, 2, 4, 6, 8, 10, 12, 14, 99]
    table["y"] = (pd.cut(table["y"], cuts, labels=False) + 7).astype(str)  # of 12 classes "10" comes before "7"
    one = pair(table, {"TASK": task, "EPOCHS": 8}, {"EPOCHS": 8}).run()
    answers, chances = one.call(one.model.classify, table), one.predict(table)
    classes = sorted(set(table["y"]))
    expected = [classes[int(row > 0.5) if task == "binary" else int(np.argmax(row))] for row in chances]
    assert answers.tolist() == expected
    assert np.mean(answers == table["y"]) > 2 * table["y"].value_counts(normalize=True).max() or task == "binary"
    with pytest.raises(ValueError, match="classify"):
        other = pair(made_up(60)).run()
        other.call(other.model.classify, table)


# The split


def parts(one, cells):
    return one.base.split_rows(len(cells), pd.Categorical(cells))


def test_rows_of_one_name_stay_in_one_part(pair, capsys):
    """Patients of 20 visits: a name is in one part, whatever the order in which pandas has the categories."""
    names = [f"patient {i % 60:03}" for i in np.random.default_rng(0).permutation(1200)]
    one = pair(made_up(1200).assign(who=names), {"SPLIT_COLUMN": "who"})
    part = parts(one, names)
    assert pd.Series(part).groupby(names).nunique().max() == 1
    assert np.abs(np.bincount(part) / 1200 - [0.8, 0.1, 0.1]).max() < 0.05
    np.testing.assert_array_equal(part, one.base.split_rows(1200, pd.Categorical(names, categories=[*sorted(set(names)), "of no row"])))
    one.run_base()
    assert "by who (names, in random order): 48 in train, 6 in validation, 6 in test" in capsys.readouterr().out
    other = pair(made_up(1200).assign(who=names), {"SPLIT_COLUMN": "who", "SEED": 1})
    assert (parts(other, names) != part).any()


def test_ids_of_a_letter_and_digits_are_names(pair):
    for names in (["S1234", "s5678", "H2991"], ["1234-5678", "4321-8765", "1111-2222"], ["day care", "week end", "fall"]):
        one = pair(made_up(600).assign(who=[f"{names[i % 3]}{i % 60}" for i in range(600)]), {"SPLIT_COLUMN": "who"})
        assert len(np.unique(parts(one, one.table["who"]))) == 3


def test_split_rows_refuses_what_the_script_would_have_read_as_text(pair):
    """Namibia, which pandas reads as missing, would fall anywhere: 40 % of the rows into other parts than the script's."""
    table = made_up(400).assign(land=np.random.default_rng(0).choice(["NA", *(f"land {i}" for i in range(19))], 400))
    one = pair(table, {"SPLIT_COLUMN": "land"})
    for land in (table["land"].replace("NA", None), table["land"][:300]):
        with pytest.raises(ValueError, match="'land' in each of the 400 rows.*keep_default_na=False"):
            one.base.split_rows(400, land)


def test_split_rows_warns_of_other_rows_than_those_of_the_run(pair, recwarn):
    one = pair(made_up(400))
    one.run_base()
    one.base.split_rows(400)
    assert not [each for each in recwarn if "SEED" in str(each.message)]
    with pytest.warns(UserWarning, match="other rows than these, or with another SEED"):
        one.base.split_rows(390)
    one.base.SEED = 1
    with pytest.warns(UserWarning, match="it has seen test rows"):
        one.base.split_rows(400)


def test_a_column_may_say_the_parts(pair):
    words = np.random.default_rng(0).choice(["Train", "validation ", "test"], 300, p=[0.5, 0.2, 0.3])
    one = pair(made_up(300).assign(part=words), {"SPLIT_COLUMN": "part"})
    expected = [["Train", "validation ", "test"].index(word) for word in words]
    assert parts(one, words).tolist() == expected
    one.run()
    words = np.where(words == "validation ", "Train", words)
    part = parts(one, words)
    assert ((part == 2) == (words == "test")).all() and (part == 1).sum() == (words == "Train").sum() // 10


@pytest.mark.parametrize("texts", [
    ["12.2024", "01.2025", "11.2023"], ["03.04.2024", "30.12.2023", "05.05.2024"], ["03042024", "30122023", "05052024"],
    ["3042024", "30122023", "5052024"], ["122024", "012025", "112023"], ["3 Apr 2024", "30 Dec 2023", "5 May 2024"],
    ["Apr-24", "Dec-23", "May-24"], ["12:30", "09:15", "10:00"], ["2024-01-01", "2024-02-30", "2024-03-01"],
    ["2023/2024", "2024/2025", "2022/2023"], ["2023-2024", "2024-2025", "2022-2023"], ["H1 2024", "H2 2023", "H1 2023"],
    ["2024M05", "2023M11", "2024M01"], ["Week 12", "Week 3", "week 40"], ["Spring 2024", "Fall 2023", "Summer 2023"],
    ["12015", "112015", "92016"], ["2024.1", "2024.2", "2024.10"], ["2024.1", "2024.2", "2024.11"], [" 2024.1", " 2024.2", " 2024.10 "], ["1Q24", "1H24", "4Q'23"],
    ["2024_Q1", "FY24Q1", "FY2023/24"], ["2024-W05-1", "2024-W06-2", "2023-W01-7"], ["train", "validation", "holdout"], ["03APR2024", "30DEC2023", "05MAY2024"], ["2023/24", "2024/25", "2022/23"],
    ["2023-24", "2024-25", "2022-23"], ["1Q2024", "4Q2023", "2Q2024"],
])  # fmt: skip
def test_dates_that_do_not_sort_are_refused(pair, texts):
    one = pair(made_up(60).assign(day=texts * 20), {"SPLIT_COLUMN": "day"})
    said = one.sentence(one.run_base)
    assert "2026-01-31" in said and any(repr(text.strip()) in said for text in texts if text not in ("train", "validation"))


@pytest.mark.parametrize("texts", [
    ["20240403", "20231230", "20240505"], ["202404", "202312", "202405"], ["2024", "2023", "2022"], ["1.5", "12.25", "-3"],
    ["2024-04-03T10:00", "2023-12-30T09:00", "2024-05-05T08:00"], ["2024-04", "2023-12", "2024-05"], ["12034", "99", "7"],
    ["2024.1", "2024.5", "2023.9"], ["2024.10", "2024.12", "2024.11"], ["2024.01", "2024.10", "2023.12"],
])  # fmt: skip
def test_numbers_and_iso_dates_are_ranked_and_the_run_says_from_where_to_where(pair, capsys, texts):
    one = pair(made_up(60).assign(day=texts * 20), {"SPLIT_COLUMN": "day"})
    order = sorted(texts, key=lambda text: float(text) if text.lstrip("-").replace(".", "").isdigit() else text)
    cells = np.repeat(order, [48, 6, 6])
    assert parts(one, cells).tolist() == [0] * 48 + [1] * 6 + [2] * 6
    one.write("table.csv", made_up(60).assign(day=cells).to_csv(index=False))
    one.call(one.base.load_rows, ["c"], [])
    assert f"train {order[0]} to {order[0]}, validation {order[1]} to {order[1]}, test {order[2]} to {order[2]}" in capsys.readouterr().out


def test_the_split_column_may_be_a_number_as_well(pair):
    one = pair(made_up(60).assign(x=range(60)), {"SPLIT_COLUMN": "x"}).run()
    data = one.call(one.base.load_rows, ["c"], ["x"])
    assert data.table["x"].tolist() == list(range(60)) and data.test.tolist() == list(range(54, 60))
    assert len(one.predict(one.table)) == 60


# Weights


def contradicting(rows=1000):
    """Return rows of which each other says the contrary, with weights 1 and 4: of the cases a fifth is "yes"."""
    return pd.DataFrame({"c": "same", "d": ["u", "v"] * (rows // 2), "x": 1.0, "y": ["no", "yes"] * (rows // 2), "w": [4.0, 1.0] * (rows // 2)})


def test_weights_count_in_training_in_boosting_and_in_the_figures(pair, capsys, graphs):
    table = contradicting()
    one = pair(table.assign(d="u"), {"TASK": "binary", "WEIGHT_COLUMN": "w", "EPOCHS": 6}, {"EPOCHS": 6}).run()
    answers = one.predict(table.assign(d="u"))
    np.testing.assert_allclose(answers, 0.2, atol=0.02)
    test = one.test_rows()
    truth, weights = (table["y"] == "yes")[test], table["w"][test]
    printed = report(capsys.readouterr().out)
    loss, area = log_loss(truth, answers[test], sample_weight=weights), roc_auc_score(truth, answers[test], sample_weight=weights)
    assert printed["embeddings + numerical columns"] == [pytest.approx(loss, rel=2e-3), pytest.approx(area, rel=2e-3)]
    part = one.base.split_rows(len(table)) == one.base.TRAINING
    share = np.average(table["y"][part] == "yes", weights=table["w"][part])
    for name in ("mean of the training rows", "gradient boosting (scikit-learn)"):
        expected = log_loss(truth, np.full(len(truth), share), sample_weight=weights)
        assert printed[name][0] == pytest.approx(expected, rel=2e-3)


def test_weights_count_in_the_curves_of_the_page(pair, graphs):
    """The area under the curve that is drawn is the AUC of the report, and the groups have the weighted share of the second class."""
    random = np.random.default_rng(0)
    table = made_up(400).assign(w=random.choice([1, 9], 400), y=random.choice(["no", "yes"], 400))
    one = pair(table, {"TASK": "binary", "WEIGHT_COLUMN": "w"}).run()
    answers = one.base.read_look(one.embeddings)["answers"]
    chances, test = one.predict(table)[one.test_rows()], table.iloc[one.test_rows()]
    truth, weights = test["y"] == "yes", test["w"].to_numpy("float64")
    assert np.trapezoid(*np.transpose(answers["roc"])[::-1]) == pytest.approx(roc_auc_score(truth, chances, sample_weight=weights), abs=1e-4)
    groups = np.array_split(np.argsort(chances), 10)
    shares = [np.average(truth.to_numpy()[group], weights=weights[group]) for group in groups]
    means = [np.average(chances[group], weights=weights[group]) for group in groups]
    assert [group[:2] for group in answers["calibration"]] == [pytest.approx(pair, abs=1e-4) for pair in zip(means, shares)]


def test_weights_of_a_regression_are_how_often_a_row_counts(pair, capsys):
    """The figures of a table with weights 1 and 3 are those of the table with the rows written as often, but for the training."""
    table = made_up(400).assign(w=np.random.default_rng(0).choice([1, 3], 400))
    one = pair(table, {"WEIGHT_COLUMN": "w"}).run()
    data = one.call(one.base.load_rows, ["c"], ["x"])
    often = table.iloc[np.repeat(data.training, table["w"].iloc[data.training])]
    assert (data.target_info["mean"], data.target_info["std"]) == (pytest.approx(often["y"].mean()), pytest.approx(often["y"].std(ddof=0)))
    often = table.iloc[np.repeat(data.test, table["w"].iloc[data.test])]
    printed = report(capsys.readouterr().out)["embeddings + numerical columns"][0]
    assert printed == pytest.approx(np.sqrt(np.mean((one.predict(often) - often["y"]) ** 2)), rel=2e-3)


@pytest.mark.parametrize(("weight", "said"), [(0, "0"), (-1, "-1"), ("", "nan"), ("many", "'many'")])
def test_weights_that_are_none_are_refused(pair, weight, said):
    one = pair(made_up(60).assign(w=[weight, *[1] * 59]), {"WEIGHT_COLUMN": "w"})
    assert said in one.sentence(one.run_base) and "'w'" in one.sentence(one.run_base)


# Settings and files


@pytest.mark.parametrize(("name", "value"), [
    ("TARGET_COLUMN", ["y", "y2"]), ("CATEGORICAL_COLUMNS", [2024]), ("CATEGORICAL_COLUMNS", ("c", "d")), ("DATA_FILE", ["table.csv"]), ("MAX_EMBEDDING_DIM", None),
    ("MAX_EMBEDDING_DIM", 6.0), ("EPOCHS", "10"), ("EPOCHS", 0), ("EPOCHS", 2.5), ("BATCH_SIZE", "auto"), ("BATCH_SIZE", 0), ("LEARNING_RATE", 0),
    ("LEARNING_RATE", "1e-3"), ("LOG_TARGET", "yes"), ("SPLIT_COLUMN", ["d"]), ("WEIGHT_COLUMN", 1), ("EMBEDDINGS_DIR", None), ("SEED", 1.5), ("SEED", True),
])  # fmt: skip
def test_a_setting_of_a_wrong_kind_is_named(pair, name, value):
    one = pair(made_up(60), {name: value})
    said = one.sentence(one.run_base)
    assert said.startswith(f"Error: {name} is {value!r}; it must be "), said


@pytest.mark.parametrize(("name", "value"), [("NUMERICAL_COLUMNS", "x"), ("EPOCHS", 0), ("LEARNING_RATE", -1), ("TRAIN_EMBEDDINGS", "no")])
def test_a_setting_of_the_second_script_of_a_wrong_kind_is_named(pair, name, value):
    one = pair(made_up(60), model={name: value})
    said = one.sentence(one.run_model)
    assert said.startswith(f"Error: {name} is {value!r}; it must be "), said


def test_every_setting_of_the_edit_blocks_has_a_rule(pair):
    one = pair(made_up(60))
    names = {name for module in (one.base, one.model) for name in vars(module) if name.isupper()}
    settings = {name for name in names if name.split("_")[-1] in ("FILE", "COLUMN", "COLUMNS", "TARGET", "DIM", "DIR", "SIZE", "RATE")}
    assert settings - {"MODEL_FILE"} | {"TASK", "EPOCHS", "SEED", "TRAIN_EMBEDDINGS"} == {name for names, *_ in one.base.RULES for name in names.split()}


@pytest.mark.parametrize("thing", [pd.Series([1.0]), {"c": ["k1"]}, "table.csv"])
def test_what_is_no_frame_is_refused(pair, thing):
    one = pair(made_up(60)).run()
    for use in (one.predict, one.embed):
        with pytest.raises(one.base.InputError, match="DataFrame"):
            use(thing)


def test_a_list_that_was_not_edited_is_named(pair):
    one = pair(made_up(60).rename(columns={"x": "gender"}), model={"NUMERICAL_COLUMNS": ["sched_dep"]})
    one.run_base()
    said = one.sentence(one.run_model)
    assert "'sched_dep'" in said and "NUMERICAL_COLUMNS in build_embed_model.py" in said and "gender" not in said


def test_semicolons_are_found(pair):
    one = pair()
    one.write("table.csv", made_up(60).to_csv(index=False, sep=";"))
    assert "semicolons" in one.sentence(one.run_base)
    one.write("table.csv", made_up(60).to_csv(index=False, sep="\t"))
    assert "tabs" in one.sentence(one.run_base)


def test_a_zip_of_one_table_is_read_and_one_of_two_is_refused(pair):
    one = pair(made_up(60), {"DATA_FILE": "table.zip"})
    made_up(60).to_csv(one.folder / "table.zip", index=False)
    data = one.call(one.base.load_rows, ["c"], ["x"])
    assert data.table["c"].tolist() == made_up(60)["c"].tolist()
    with zipfile.ZipFile(one.folder / "table.zip", "a") as archive:
        archive.writestr("readme.txt", "hello")
    assert "2 files" in one.sentence(one.run_base)


def test_a_wide_frame_is_predicted_in_small_pieces(pair, monkeypatch):
    """Memory: every number is 64 bins inside the model."""
    wide = pd.DataFrame(np.random.default_rng(0).normal(size=(3000, 100)), columns=[f"x{i}" for i in range(100)])
    one = pair(made_up(60).join(wide), model={"NUMERICAL_COLUMNS": [*wide]}).run()
    seen, real = [], keras.Model.predict_on_batch
    monkeypatch.setattr(keras.Model, "predict_on_batch", lambda model, x: (seen.append(len(x["c"])), real(model, x))[1])
    assert len(one.predict(wide.assign(c="k1", d="left"))) == 3000
    assert max(seen) * 102 < 2**17


def test_the_files_are_read_once(pair, monkeypatch):
    one = pair(made_up(60)).run()
    first = one.predict(one.table[:1]), one.embed(one.table[:1])
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("read again"))
    monkeypatch.setattr(pd, "read_csv", lambda *_, **__: pytest.fail("read again"))
    np.testing.assert_array_equal(one.predict(one.table[:1]), first[0])
    pd.testing.assert_frame_equal(one.embed(one.table[:1]), first[1])


def test_embed_leaves_the_target_and_the_weight_out(pair):
    table = made_up(60).assign(w=1.5)
    one = pair(table, {"WEIGHT_COLUMN": "w"})
    one.run_base()
    assert {"y", "w"}.isdisjoint(one.embed(table)) and "x" in one.embed(table)
    one.edit({"WEIGHT_COLUMN": "w"}, {"NUMERICAL_COLUMNS": ["x", "w"]})
    assert "w" in one.embed(table), "it is an input"


def test_embed_makes_no_two_columns_of_one_name(pair):
    one = pair(made_up(60))
    one.run_base()
    with pytest.raises(one.base.InputError, match="Column 'c_1' of the frame bears the name of a part of a vector"):
        one.embed(one.table.assign(c_1=0.0))
    assert one.embed(one.table.assign(c_99=0.0)).columns.is_unique


def test_a_number_that_is_missing_everywhere_is_warned_of(pair, recwarn):
    one = pair(made_up(60)).run()
    one.predict(one.table.assign(x=[np.nan] * 59 + [1.0]))
    assert not [each for each in recwarn if "missing" in str(each.message)]
    with pytest.warns(UserWarning, match="Column 'x' is missing in all rows"):
        one.predict(one.table.assign(x=np.nan))


def test_many_more_empty_cells_than_in_training_are_warned_of(pair, recwarn):
    table = made_up(100)
    table.loc[[3, 50], "c"] = ""  # a category of its own, of two per cent
    one = pair(table)
    one.run_base()
    one.embed(table)
    assert not [each for each in recwarn if "cells are" in str(each.message)]
    with pytest.warns(UserWarning, match="Column 'c': 30% of the cells are empty, such as ''; where the model was made, 1.2% were"):
        one.embed(table.assign(c=[""] * 30 + ["k1"] * 70))


@pytest.mark.parametrize("values", [2, 3])
def test_a_regression_on_two_values_is_said(pair, capsys, values):
    one = pair(made_up(60).assign(y=np.arange(60) % values))
    one.call(one.base.load_rows, ["c"], [])
    assert ("y has two values: TASK = 'binary' if they are classes" in capsys.readouterr().out) == (values == 2)


def test_a_model_file_of_a_newer_keras_is_refused_with_both_versions(pair, monkeypatch):
    one = pair(made_up(60)).run()

    def refuse(*_, **__):
        raise TypeError("Unrecognized keyword arguments\nand much more")

    monkeypatch.setattr(keras.models, "load_model", refuse)
    saved = keras.__version__
    monkeypatch.setattr(keras, "__version__", "3.9.9")
    with pytest.raises(one.base.InputError, match=f"Keras {saved} .*3.9.9") as error:
        one.predict(one.table)
    assert "\n" not in str(error.value)


def test_the_files_are_found_beside_the_scripts(pair, tmp_path):
    """Run by their path and used from another folder, the scripts leave nothing there."""
    one = pair(made_up(60))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(one.folder), "PYTHONDONTWRITEBYTECODE": "1"}
    use = "import pandas, build_embed_model as m; print(len(m.embed(pandas.read_csv(r'{}'))))"
    for command in ([one.folder / "build_embeddings.py"], ["-c", use.format(one.folder / "table.csv")]):
        done = subprocess.run([sys.executable, *command], cwd=elsewhere, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["60"]
    assert not list(elsewhere.iterdir()) and (one.embeddings / "c.npy").exists()


def test_an_argument_is_not_passed_over(pair):
    one = pair(made_up(60))
    done = subprocess.run([sys.executable, "build_embeddings.py", "--help"], cwd=one.folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "'--help'" in done.stderr and "block at its top" in done.stderr and not done.stdout


def test_without_tensorflow_no_training_is_lost(pair, monkeypatch):
    one = pair(made_up(60))
    one.run_base()
    find = importlib_find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tensorflow" else find(name))
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("training began"))
    assert importlib_find and "pip install tensorflow" in one.sentence(one.run_model)


# Found by a reviewer: each of these went wrong before


def test_a_second_run_of_the_second_script_reports_its_own_boosting(pair, capsys):
    one = pair(made_up(300)).run()
    first = report(capsys.readouterr().out)
    one.edit(model={"NUMERICAL_COLUMNS": []})
    one.run_model()
    second = report(capsys.readouterr().out)
    assert second["gradient boosting (scikit-learn)"][0] > 1.02 * first["gradient boosting (scikit-learn)"][0]
    assert len(one.base.read_look(one.embeddings)["report"]["intervals"]) == 4, "also that of the first script's line"


def test_the_page_stays_in_a_folder_of_another_name(pair):
    one = pair(made_up(60), {"EMBEDDINGS_DIR": "other"})
    (one.folder / "embeddings").mkdir()
    (one.folder / "embeddings/look.html").write_text("page")
    for _ in range(2):
        one.run()
        assert (one.folder / "other/look.html").read_text() == "page"


def test_times_that_repeat_over_many_rows_keep_their_precision(pair):
    stamps = np.repeat(MILLISECONDS + 33 * np.arange(20), 1000)
    one = pair(pd.DataFrame({"c": "a", "d": "b", "x": stamps, "y": np.arange(20_000.0)}))
    data = one.call(one.base.load_rows, ["c"], ["x"])
    np.testing.assert_allclose(np.diff(data.table["x"]), np.diff(stamps), atol=1e-3)


def test_thirty_categories_have_a_map(pair):
    vectors = np.random.default_rng(0).normal(size=(30, 15))
    places, *_ = pair(made_up(60)).base.lay_out(vectors)
    assert places.shape == (30, 2)


def test_missing_cells_of_a_column_of_0_and_1_are_unknown(pair):
    one = pair(codes(60).astype({"d": str})).run()
    vectors = one.embed(one.table[:3].assign(d=["0", "", "1"])).filter(regex="^d_").to_numpy()
    weights, vocabulary = one.matrix("d")
    rows = [vocabulary["category"].tolist().index("0"), 0, vocabulary["category"].tolist().index("1")]
    np.testing.assert_array_equal(vectors, weights[rows])


@pytest.mark.parametrize("texts", [["2019-Q1", "2018-Q4", "2019-Q2"], ["2024-W05", "2023-W50", "2024-W07"], ["05/24", "12/23", "06/24"], ["FY2003", "FY2002", "FY2001"]])
def test_quarters_and_weeks_are_no_names(pair, texts):
    one = pair(made_up(60).assign(day=texts * 20), {"SPLIT_COLUMN": "day"})
    assert "2026-01-31" in one.sentence(one.run_base)


@pytest.mark.parametrize("name", ["{} Market St", "Store {} Marseille", "10.0.0.{}", "mayor {}b", "a{}-Q", "MAR{:03}", "SEP-{:03}"])
def test_addresses_are_names(pair, name):
    one = pair(made_up(60))
    one.base.SPLIT_COLUMN = "who"
    part = parts(one, [name.format(i // 3) for i in range(60)])
    assert np.bincount(part).tolist() == [48, 6, 6]


def test_a_word_that_is_no_part_is_named(pair):
    """By name, "test" might have been for training."""
    one = pair(made_up(60).assign(part=["train"] * 30 + ["test"] * 10 + ["2022", "oot"] * 10), {"SPLIT_COLUMN": "part"})
    assert "has '2022'" in one.sentence(one.run_base)
    users = np.repeat(["train", "test", *(f"u{i}" for i in range(198))], 3)
    assert np.bincount(parts(one, users)).tolist() == [480, 60, 60], "names among names"


def test_a_development_part_is_validation_and_a_single_test_row_is_too_few(pair):
    words = ["train"] * 40 + ["dev"] * 10 + ["test"] * 10
    one = pair(made_up(60).assign(part=words), {"SPLIT_COLUMN": "part"})
    assert parts(one, words).tolist() == [0] * 40 + [1] * 10 + [2] * 10
    one.write("table.csv", made_up(60).assign(part=["train"] * 50 + ["dev"] * 9 + ["test"]).to_csv(index=False))
    assert "too few" in one.sentence(one.run_base)


def test_rows_of_one_name_are_no_more_certain_than_their_names(pair):
    """Ten names of a hundred rows, the error is one for each name: drawn as single rows, chance would be denied."""
    base, random = pair(made_up(60)).base, np.random.default_rng(0)
    names = np.repeat(np.arange(10), 100)
    answers = random.uniform(1, 3, 10)[names] + random.normal(size=1000, scale=0.1)
    spreads = []
    for groups in (None, names):
        info = {"mean": 0, "std": 1, "log": False}
        data = rows_of(base, target=np.zeros(1000), target_info=info, training=[], test=np.arange(1000), groups=groups)
        spreads.append(base.bootstrap({"a": answers}, data)["a"].std())
    of_names = (answers**2).reshape(10, 100).mean(axis=1)
    assert spreads[1] == pytest.approx(of_names.std() / np.sqrt(10), rel=0.1) and spreads[1] > 3 * spreads[0]


def test_embed_goes_by_the_saved_model_whatever_the_block_says_now(pair):
    one = pair(made_up(60), model={"CATEGORICAL_COLUMNS": ["c"]}).run()
    expected = one.embed(one.table)
    assert "d" in expected and "c_0" in expected and "d_0" not in expected and "y" not in expected
    one.model.CATEGORICAL_COLUMNS, one.base.TARGET_COLUMN = ["shop"], "sales"
    pd.testing.assert_frame_equal(one.embed(one.table), expected)


@pytest.mark.parametrize("largest", [0.4, 400])
def test_a_logarithm_that_does_little_is_said(pair, capsys, largest):
    table = made_up(60)
    table["y"] = np.linspace(0, largest, 60)
    one = pair(table, {"LOG_TARGET": True})
    one.call(one.base.load_rows, ["c"], [])
    assert ("LOG_TARGET does little: y has no value above 0.5" in capsys.readouterr().out) == (largest < 1)


@pytest.mark.parametrize("texts", [["2.10", "2.1"], ["1.50", "15"], ["10", "1"]])
def test_numbers_that_differ_are_not_alike(pair, texts):
    base = pair(made_up(60)).base
    assert base.alike(texts) == [] and base.alike(["5", "5.0", "5.00"]) == [["5", "5.0", "5.00"]]


def test_a_target_far_from_zero_keeps_its_precision(pair, capsys):
    """Keras rounds the numbers of a layer to float32, which has steps of 131,072 at a time in milliseconds."""
    table = made_up(60)
    one = pair(table.assign(y=MILLISECONDS + table["y"] * 1000)).run()
    test = one.test_rows()
    error = np.sqrt(np.mean((one.predict(one.table) - one.table["y"])[test] ** 2))
    assert report(capsys.readouterr().out)["embeddings + numerical columns"][0] == pytest.approx(error, rel=2e-3)


# Files and settings that newcomers had


def test_a_file_of_somebody_else_is_not_written_over(pair):
    """EMBEDDINGS_DIR = "data", and a column of the name of the table in it."""
    one = pair(made_up(60).rename(columns={"c": "shop"}), {"CATEGORICAL_COLUMNS": ["shop"], "EMBEDDINGS_DIR": "data"})
    (one.folder / "data").mkdir()
    table = one.table.to_csv(index=False)
    (one.folder / "data/shop.csv").write_text(table, encoding="utf-8")
    said = one.sentence(one.run_base)
    assert "shop.csv" in said and "EMBEDDINGS_DIR" in said
    assert [file.name for file in (one.folder / "data").iterdir()] == ["shop.csv"]
    assert (one.folder / "data/shop.csv").read_text(encoding="utf-8") == table
    (one.folder / "data/shop.csv").unlink()
    one.run_base()
    (one.folder / "data/run.json").unlink()
    one.run_base()  # its own files it may write over, also where run.json was removed
    assert one.base.read_run(one.folder / "data")["files"]


@pytest.mark.parametrize(("script", "name"), [("base", "WEIGHT_COLUMN"), ("base", "SEED"), ("model", "TRAIN_EMBEDDINGS")])
def test_a_line_missing_from_the_edit_block_is_named(pair, script, name):
    one = pair(made_up(60))
    one.run()
    before = one.saved()
    delattr(getattr(one, script), name)
    said = one.sentence(one.run_base if script == "base" else one.run_model)
    assert f"{name} is missing from the edit block" in said and one.saved() == before


def test_a_mistake_of_ours_is_no_sentence(pair):
    with pytest.raises(NameError, match="nothing_of_this_name"):
        pair(made_up()).base.run_script(lambda: nothing_of_this_name)  # noqa: F821


def test_a_seed_that_keras_refuses_is_named(pair):
    one = pair(made_up(60), {"SEED": 10**12})
    assert "SEED is 1000000000000; it must be a whole number from 0 to 4294967295" in one.sentence(one.run_base)
    pair(made_up(60), {"SEED": 2**32 - 1}).run_base()


def test_scikit_learn_may_be_set_to_return_frames(pair):
    import sklearn

    table = made_up(60)
    for sign in (1, -1):  # with one of them the first axis is turned round
        one = pair(table.assign(y=sign * table["y"]))
        with sklearn.config_context(transform_output="pandas"):
            one.run()
        assert len(one.base.read_look(one.embeddings)["columns"][0]["x"]) == 6


def test_a_column_may_be_called_self(pair):
    one = pair(made_up(60).rename(columns={"x": "self", "d": "frame"}), {"CATEGORICAL_COLUMNS": ["c", "frame"]}, {"NUMERICAL_COLUMNS": ["self"]})
    one.run()
    assert {each["column"] for each in one.base.read_look(one.embeddings)["worth"]} == {"c", "frame", "self"}


def test_a_zip_with_a_password_is_a_sentence(pair):
    """The bit that says so, set by hand in both headers: zipfile itself cannot write such a file."""
    one = pair(made_up(60), {"DATA_FILE": "table.zip"})
    with zipfile.ZipFile(one.folder / "table.zip", "w") as archive:
        archive.writestr("table.csv", one.table.to_csv(index=False))
    content = bytearray((one.folder / "table.zip").read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (one.folder / "table.zip").write_bytes(content)
    said = one.sentence(one.run_base)
    assert "table.zip" in said and "password" in said


def test_a_tilde_is_the_home_folder(pair, monkeypatch, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    made_up(60).to_csv(home / "t.csv", index=False)
    one = pair(None, {"DATA_FILE": "~/t.csv", "EMBEDDINGS_DIR": "~/learned"})
    one.run_base()
    assert (home / "learned/c.npy").exists() and not (one.folder / "~").exists()


def test_a_pattern_reaches_into_folders(pair, capsys):
    one = pair(None, {"DATA_FILE": "s/**/t.csv"})
    for folder in ("s", "s/a", "s/b/x"):
        (one.folder / folder).mkdir(parents=True, exist_ok=True)
        one.write(f"{folder}/t.csv", made_up(60).to_csv(index=False))
    one.run_base()
    assert "180 rows" in capsys.readouterr().out


def test_a_header_that_comes_again_is_named(pair):
    one = pair(None, {"TASK": "multiclass", "CATEGORICAL_COLUMNS": ["c"]})
    table = made_up(60).round({"y": -1}).to_csv(index=False)
    one.write("table.csv", table + table)
    said = one.sentence(one.run_base)
    assert "line 62: the header once more" in said
