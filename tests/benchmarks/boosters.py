"""Gradient boosting on the benchmark's tables: LightGBM, CatBoost and scikit-learn, on given rows.

    python tests/benchmarks/boosters.py [TABLE ...]

Each figure is written to boosters.csv beside this file as soon as it is known, and what stands there for the same table,
seed, model and rows is not computed again.
"""

import csv
import os
import sys
import tempfile
import time
from datetime import date
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait crawl on a shared machine

import catboost
import lightgbm
import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import log_loss, roc_auc_score, root_mean_squared_error
from sklearn.model_selection import KFold
from sklearn.preprocessing import TargetEncoder
from threadpoolctl import threadpool_limits

from tables import TABLES, read_csv, write_csv

BOOSTERS_FILE = Path(__file__).with_name("boosters.csv")
FIELDS = ["table", "seed", "model", "metric", "value", "auc", "seconds", "rounds", "rows", "version", "date"]
SEEDS = [0, 1, 2]
THREADS = 2
PATIENCE = 100  # rounds without a better figure on the validation rows, after which a booster stops


def fit_boosters(train, validation, test, settings, table, seed, models=None):
    """Fit every booster on `train`, pick its rounds on `validation`, and return {model: its line in BOOSTERS_FILE}.

    The frames hold raw columns; `settings` is a dict with the names of the scripts' edit blocks; `models` may be others than
    BOOSTERS.
    """
    frames = [train, validation, test]
    columns = settings["CATEGORICAL_COLUMNS"] + settings["NUMERICAL_COLUMNS"]
    features = [frame[columns].copy() for frame in frames]
    for column in settings["CATEGORICAL_COLUMNS"]:
        for part in features:
            part[column] = part[column].astype(object).where(part[column].notna(), "").astype(str)
    targets = encode_targets(settings, *frames)
    rows = "-".join(fingerprint(part.assign(**{settings["TARGET_COLUMN"]: target}))
                    for part, target in zip(features, targets))
    lines = {line["model"]: line for line in read_lines()
             if (line["table"], line["seed"], line["rows"]) == (table, str(seed), rows)}
    for model, (fit, package) in (models or BOOSTERS).items():
        if model not in lines:
            start = time.perf_counter()
            prediction, rounds = fit(features, targets, settings, seed)
            seconds = time.perf_counter() - start
            prediction = np.expm1(prediction) if settings["LOG_TARGET"] else prediction
            metric, value, auc = measure(settings, train, test, prediction)
            lines[model] = dict(zip(FIELDS, [
                table, str(seed), model, metric, f"{value:.6f}", "" if auc is None else f"{auc:.6f}", f"{seconds:.1f}",
                str(rounds), rows, f"{package} {version(package)}", date.today().isoformat()]))
            add_line(lines[model])
    return lines


def encode_targets(settings, train, *others):
    """Return each frame's target as an array: numbers, their log1p, or positions in the sorted classes of `train`."""
    targets = [frame[settings["TARGET_COLUMN"]].to_numpy() for frame in (train, *others)]
    if settings["TASK"] != "regression":
        return [np.searchsorted(np.unique(targets[0]), target) for target in targets]
    return [np.log1p(target) if settings["LOG_TARGET"] else target for target in targets]


def measure(settings, train, test, prediction):
    """Return (metric's name, error, AUC or None) of any model's predictions for the rows of `test`.

    Predictions are in the target's own units, or class probabilities (rows, classes) with the classes of `train` sorted.
    """
    target = encode_targets(settings, train, test)[1]
    if settings["TASK"] != "regression":
        auc = roc_auc_score(target, prediction[:, 1]) if settings["TASK"] == "binary" else None
        return "log loss", log_loss(target, prediction, labels=range(prediction.shape[1])), auc
    if settings["LOG_TARGET"]:
        return "RMSE of log1p", root_mean_squared_error(target, np.log1p(np.maximum(prediction, 0))), None
    return "RMSE", root_mean_squared_error(target, prediction), None


def as_categories(features, columns):
    """Return the frames with pandas categories from the first one's texts in `columns`; any other text is missing."""
    features = [part.copy() for part in features]
    for column in columns:
        categories = np.setdiff1d(features[0][column], [""])
        for part in features:
            part[column] = pd.Categorical(part[column], categories=categories)
    return features


def fit_lightgbm(features, targets, settings, seed, **options):
    """Return LightGBM's predictions for the test rows and its rounds; with `options` it stops early, else after 100."""
    train, validation, test = as_categories(features, settings["CATEGORICAL_COLUMNS"])
    kind = lightgbm.LGBMRegressor if settings["TASK"] == "regression" else lightgbm.LGBMClassifier
    booster = kind(n_jobs=THREADS, random_state=seed, verbose=-1, **options)
    if options:
        booster.fit(train, targets[0], eval_X=validation, eval_y=targets[1],
                    callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)])
    else:
        booster.fit(train, targets[0])
    predict = booster.predict if settings["TASK"] == "regression" else booster.predict_proba
    return predict(test), booster.best_iteration_ or booster.n_estimators_


def fit_catboost(features, targets, settings, seed):
    """Return CatBoost's predictions for the test rows and its best number of rounds; it encodes the texts itself."""
    kind = catboost.CatBoostRegressor if settings["TASK"] == "regression" else catboost.CatBoostClassifier
    booster = kind(iterations=1000, early_stopping_rounds=PATIENCE, cat_features=settings["CATEGORICAL_COLUMNS"],
                   random_seed=seed, thread_count=THREADS, verbose=False, allow_writing_files=False)
    booster.fit(features[0], targets[0], eval_set=(features[1], targets[1]), use_best_model=True)
    predict = booster.predict if settings["TASK"] == "regression" else booster.predict_proba
    return predict(features[2]), booster.tree_count_


def fit_scikit_learn(features, targets, settings, seed):
    """Return HistGradientBoosting's predictions for the test rows and its best number of rounds."""
    long = [c for c in settings["CATEGORICAL_COLUMNS"] if features[0][c].nunique() > 255]  # more than it can take
    parts = as_categories(features, [c for c in settings["CATEGORICAL_COLUMNS"] if c not in long])
    if long:
        # Left to itself it takes a whole-number target for one class a number.
        target_type = "continuous" if settings["TASK"] == "regression" else settings["TASK"]
        encoder = TargetEncoder(target_type=target_type, cv=KFold(5, shuffle=True, random_state=seed))
        encoder.set_output(transform="pandas")
        # fit_transform encodes a training row from the other folds; transform would let it see its own target.
        codes = [encoder.fit_transform(parts[0][long], targets[0]), *(encoder.transform(part[long]) for part in parts[1:])]
        parts = [part.drop(columns=long).join(code) for part, code in zip(parts, codes)]
    kind = HistGradientBoostingRegressor if settings["TASK"] == "regression" else HistGradientBoostingClassifier
    booster = kind(max_iter=1000, early_stopping=True, n_iter_no_change=PATIENCE, categorical_features="from_dtype",
                   random_state=seed)
    with threadpool_limits(THREADS, user_api="openmp"):
        booster.fit(parts[0], targets[0], X_val=parts[1], y_val=targets[1])
        # It keeps its last round, the others their best one; validation_score_ starts with round 0.
        best = max(1, int(np.argmax(booster.validation_score_)))
        stages = booster.staged_predict if settings["TASK"] == "regression" else booster.staged_predict_proba
        return next(islice(stages(parts[2]), best - 1, None)), best


STOPPED = {"n_estimators": 10_000, "learning_rate": 0.05}
BOOSTERS = {
    "LightGBM default": (fit_lightgbm, "lightgbm"),
    "LightGBM 31 leaves": (partial(fit_lightgbm, num_leaves=31, **STOPPED), "lightgbm"),
    "LightGBM 127 leaves": (partial(fit_lightgbm, num_leaves=127, **STOPPED), "lightgbm"),
    "CatBoost": (fit_catboost, "catboost"),
    "HistGradientBoosting": (fit_scikit_learn, "scikit-learn"),
}


def fingerprint(frame):
    """Return six hexadecimal digits that change when the rows of a frame or its columns change, but not with their order."""
    return f"{int(pd.util.hash_pandas_object(frame, index=False).sum()) % 16**6:06x}"


def read_lines():
    """Return the lines of BOOSTERS_FILE as dicts of text."""
    if not BOOSTERS_FILE.exists():
        return []
    with BOOSTERS_FILE.open(newline="") as file:
        return list(csv.DictReader(file))


def add_line(line):
    """Append a line to BOOSTERS_FILE, and show it."""
    is_new = not BOOSTERS_FILE.exists()
    with BOOSTERS_FILE.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(line)
    print(*line.values(), sep="  ", flush=True)


def split_table(frame, seed):
    """Return the training, validation and test rows of a frame, which are those of both scripts with SEED = `seed`."""
    import build_embeddings  # here, because it brings TensorFlow along
    build_embeddings.SEED = seed
    part = build_embeddings.split_rows(len(frame))
    return [frame[part == number] for number in range(3)]


def main(tables):
    """Fit all boosters on each table with each seed."""
    with tempfile.TemporaryDirectory() as folder:
        for table in tables:
            settings = write_csv(table, folder)
            frame = read_csv(settings)
            for seed in SEEDS:
                fit_boosters(*split_table(frame, seed), settings, table, seed)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))
    main(sys.argv[1:] or list(TABLES))
