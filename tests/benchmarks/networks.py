"""RealMLP and TabM, by pytabkit with its defaults and on the processor, on the benchmark's tables.

    python tests/benchmarks/networks.py [TABLE ...]

The rows are those of boosters.py and of both scripts, and the figures are kept in boosters.csv. They take minutes to an hour a
table: without an argument only the two smallest are run, with seed 0.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import pytabkit

from boosters import THREADS, as_categories, fit_boosters, split_table
from tables import read_csv, write_csv


def fit_network(name, features, targets, settings, seed):
    """Return a network's predictions for the test rows; the validation rows choose its epoch, of which pytabkit says nothing."""
    columns = settings["CATEGORICAL_COLUMNS"]
    train, validation, test = as_categories(features, columns)
    kind = getattr(pytabkit, f"{name}_{'Regressor' if settings['TASK'] == 'regression' else 'Classifier'}")
    network = kind(device="cpu", random_state=seed, n_threads=THREADS)
    if settings["TASK"] != "regression":
        network.set_params(val_metric_name="cross_entropy")  # what the report compares
    for numbers in (train, validation, test):  # RealMLP takes no missing number
        for column in settings["NUMERICAL_COLUMNS"]:
            numbers[column] = numbers[column].astype(float).fillna(features[0][column].astype(float).median())
    network.fit(train, targets[0], validation, targets[1], cat_col_names=columns)
    predict = network.predict if settings["TASK"] == "regression" else network.predict_proba
    return predict(test), ""


NETWORKS = {name: (partial(fit_network, name), "pytabkit") for name in ("RealMLP_TD", "TabM_D")}


def main(tables):
    with tempfile.TemporaryDirectory() as folder:
        for table in tables:
            settings = write_csv(table, folder)
            fit_boosters(*split_table(read_csv(settings), 0), settings, table, 0, NETWORKS)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))
    main(sys.argv[1:] or ["ames", "lending_club"])
