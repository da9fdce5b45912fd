"""Train a model on the vectors that build_embeddings.py learned and on the numerical columns.

    python build_embeddings.py
    python build_embed_model.py

Every category becomes its vector from embeddings/<column>.npy, the numerical columns join them, and
a network learns from both, from one learned number for each pair of categories, and, on tables of
up to 100,000 training rows, from the mean target of other rows that are alike in one column or two
(target encoding). On test rows that neither script trained on, a report compares it with gradient
boosting: on the flights in data/ an error of 6.4 minutes against 7.2, after two or three minutes on
two cores. The script saves embeddings/embed_model.keras, which takes the columns as they stand in
the file (text, unscaled numbers, missing cells) and predicts in the target's units, or
probabilities; predict and embed, below, use what was saved.

Sources: Gorishniy et al. 2022, arXiv:2203.05556 (numbers); Gorishniy et al. 2024, arXiv:2410.24210
(TabM); Holzmüller et al. 2024, arXiv:2407.04491 (RealMLP); Cheng et al. 2016, arXiv:1606.07792
(Wide & Deep); Pargent et al. 2022, arXiv:2104.00629 (mean targets).
"""

import functools
import hashlib
import importlib.util
import itertools
import re
import sys
import warnings
from collections import namedtuple
from multiprocessing.pool import ThreadPool

import build_embeddings as base  # before keras: it sets what TensorFlow reads at its start
import keras
import numpy as np
import pandas as pd
from keras import layers, ops
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import roc_curve
from sklearn.preprocessing import TargetEncoder

# --------------------------------------------------------------------------------------------------
# Edit this block for your own table. The table, its target and the task: in build_embeddings.py.

# data
CATEGORICAL_COLUMNS = base.CATEGORICAL_COLUMNS  # or a shorter list: columns that have embeddings
NUMERICAL_COLUMNS = ["sched_dep", "distance", "plane_year", "seats", "temp", "dewp", "humid",
                     "wind_dir", "wind_speed", "precip", "pressure", "visib"]  # may be empty

# training
TRAIN_EMBEDDINGS = True  # False keeps the vectors as they are: if they must mean the same later
EPOCHS = None  # None: by the number of rows; a number: exactly so many
LEARNING_RATE = 5e-3  # lower it if training diverges
# --------------------------------------------------------------------------------------------------


def main():
    base.check_settings(vars(base) | globals())
    base.join_processes()
    folder = base.open_folder(base.EMBEDDINGS_DIR)
    print(f"Loading embeddings from {folder}/")
    run = base.read_run(folder)
    matrices, vocabularies, *_ = zip(*[load_embedding(name, run) for name in CATEGORICAL_COLUMNS])
    vocabularies = dict(zip(CATEGORICAL_COLUMNS, vocabularies))
    data = base.load_rows(CATEGORICAL_COLUMNS, NUMERICAL_COLUMNS)
    check_rows(data, run, vocabularies)
    keras.utils.set_random_seed(base.SEED)

    ids = base.to_ids(data.table, vocabularies)
    numbers = data.table  # the columns that are left
    pairs = pairs_that_repeat(ids, data)
    means, tables = target_means(ids, numbers, pairs, data)
    frames = ids, numbers, means
    inputs = [frame for frame in frames if frame.shape[1]]  # the ids, then the others if any

    title = f"Training on {len(matrices)} embeddings + {len(NUMERICAL_COLUMNS)} numerical columns"
    with base.stage(f"{title}, beside gradient boosting"), ThreadPool(1) as pool:
        if not base.PROCESS:  # a small network's steps leave part of the processors idle
            boosting = pool.apply_async(boost, (ids, numbers, data))
        recipe = base.choose_recipe(len(data.training), EPOCHS, rows_to_see=3_000_000)
        model = build_model(matrices, frames, pairs, tables, data, recipe, run["validation_error"])
        model, history = base.train(model, vocabularies, inputs, data, recipe, LEARNING_RATE,
                                    averaged=20)
        if base.PROCESS > 0:
            return  # of several processes the first one reports and saves
        predictions = base.predict_rows(model, inputs, data.test)
        answers = {MEAN: mean_prediction(data), BOOSTING: boosting.get(), FINAL: predictions}

    report = compare(answers, run["test"][base.ALONE], data)
    print_report(report, len(data.test), run["unknown"])
    worth = column_worth(model, inputs, tables, data)
    print_worth(worth, report["figures"][FINAL])
    look = second_look(folder, report, predictions, worth, history, data)
    save_model(folder, run, raw_model(model, vocabularies, tables, data), report, look)


# The models of the report
MEAN = "mean of the training rows"
BOOSTING = "gradient boosting (scikit-learn)"
FINAL = "embeddings + numerical columns"


# The vectors


def load_embedding(column, run):
    """Return the Embedding of a column, its weights (cardinality + 1, dimension) first.

    Raises base.InputError where files are missing, damaged, or not of one and the same run.
    """
    folder, saved = base.here(base.EMBEDDINGS_DIR), run.get("columns", {}).get(column)
    if saved is None:
        raise base.InputError(f"{folder}/ has no embedding of {column!r}: "
                              "run build_embeddings.py with it first.")
    return read_embedding(folder / saved["file"], saved["fingerprint"])


# The network

PRIOR = 60  # unlike in build_embeddings.py, not times a vector's length: a stronger one would hold
# rare categories at zero where numbers say more


def build_model(matrices, frames, pairs, tables, data, recipe, validation_error):
    """Return the network: ids and, if any, numbers and target means -> features -> dense layers.

    matrices: the saved weights of each categorical column; frames: what the network sees of all
    rows; validation_error: that of the vectors alone, in a regression the mean square.
    """
    ids, numbers, means = frames
    inputs = [keras.Input((ids.shape[1],), dtype="int32")]
    rows = ops.maximum(inputs[0], 0)  # a forgotten cell, -1, is of row 0, see hide_some
    features = []
    for i, weights in enumerate(matrices):
        layer = base.embedding(weights, PRIOR, data, f"embedding_{i}", TRAIN_EMBEDDINGS)
        vectors = layer(rows[:, i])
        if weights.shape[1] > 8:  # fewer numbers, to learn fewer rows of a rare category by heart
            vectors = layers.Dense(8, use_bias=False)(vectors)
        features.append(vectors)
    if numbers.shape[1]:
        inputs.append(keras.Input((numbers.shape[1],)))
        features.append(embed_numbers(inputs[-1], *fit_scales(numbers, data.training)))
    before_means = sum(feature.shape[1] for feature in features)
    if means.shape[1]:
        inputs.append(keras.Input((means.shape[1],)))
        features.append(inputs[-1] * is_known(inputs[0], tables))
    effects = 0.0
    if pairs:
        # three times the RMSE, of a target of standard deviation 1, was best of several
        unit = 3 * min(1, validation_error**0.5) if base.TASK == "regression" else 1.0
        effects = pair_effects(rows, pairs, [len(m) for m in matrices], data, unit)
    features = layers.concatenate(features)
    seen = np.ones((recipe.members, features.shape[1]), "float32")
    if numbers.shape[1]:  # else there is little else to see
        # half of the members do without means, which are easily learned by heart
        seen[: recipe.members // 2, before_means:] = 0
    return keras.Model(inputs, base.ensemble(features, data, recipe, effects, seen))


# The numbers

BINS = 64  # of a number


def embed_numbers(numbers, medians, scales, edges):
    """Return the numerical columns as a network can use them: (rows, features).

    Each column is scaled and softly clipped to -3 ... 3 (RealMLP), so that no outlier weighs more;
    a missing cell becomes 0 and sets a mark. Each is also encoded piecewise linearly: for each bin
    0 below it, 1 above it, and within it how far the number has come; of these a small layer makes
    bends and jumps (Gorishniy et al. 2022). edges: of the bins, (columns, BINS + 1).
    """
    edges = (edges - medians[:, None]) * scales[:, None]
    scaled = layers.Rescaling(scales.tolist(), (-medians * scales).tolist())(numbers)
    missing = ops.isnan(numbers)
    scaled = ops.clip(ops.where(missing, 0.0, scaled), -1e6, 1e6)  # a square must not overflow
    clipped = scaled / ops.sqrt(1 + ops.square(scaled / 3))

    widths = np.diff(edges)
    slopes = 1 / np.where(widths > 1e-30, widths, 1.0)
    into_bins = layers.Rescaling(slopes.tolist(), (-edges[:, :-1] * slopes).tolist())
    shares = into_bins(ops.repeat(ops.expand_dims(scaled, 2), BINS, axis=2))
    random = keras.initializers.RandomNormal(stddev=BINS**-0.5)
    bends = layers.EinsumDense("rcb,cbf->rcf", output_shape=(len(edges), 12), bias_axes="cf",
                               activation="relu", kernel_initializer=random)
    bent = bends(ops.clip(shares, 0.0, 1.0))
    return layers.concatenate([layers.Flatten()(bent), clipped, ops.cast(missing, "float32")])


# Pairs of categories


def pairs_that_repeat(ids, data):
    """Return the places of pairs of columns whose pairs of categories are worth a number each.

    They come up twice or more on average, else their numbers would hold single rows by heart; and
    there are more of them than categories in either column: a plane implies its maker. At most
    16 columns, those with the most categories, and 250,000 rows are looked at.
    """
    if data.outputs > 20:
        return []  # their numbers would fill the memory
    cells = ids.iloc[base.sample(data.training, 250_000)]
    columns = cells.nunique().nlargest(16)
    pairs = []
    for pair in itertools.combinations(columns.index, 2):
        count = len(cells[[*pair]].drop_duplicates())
        if columns[[*pair]].max() < count <= len(cells) / 2:
            pairs.append(tuple(ids.columns.get_loc(column) for column in pair))
    return pairs


def pair_effects(ids, places, sizes, data, unit):
    """Return what pairs of its categories add to a row's predictions, (rows, 1, outputs).

    Dense layers find what a category adds, but hardly what it adds beside one other; one learned
    number for each pair can hold that (the wide part of Wide & Deep). The prior keeps it at zero
    unless its rows say otherwise. places: (first column, second column) of each pair of columns;
    sizes: the rows of each column's matrix; unit: the scale of the numbers, lest they drown a
    small remainder.
    """
    first, second = np.transpose(places)
    sizes = np.array(sizes)
    ends = np.cumsum(sizes[first] * sizes[second])  # each pair of columns has numbers of its own
    # of more pairs some share a number; a larger matrix would have no prior, see base.is_large
    count = min(int(ends[-1]), 2**18 - 5, (base.LARGE - 1) // data.outputs)
    offsets = (-ends % count).astype("int32")
    factors = np.minimum(sizes[second], 104_729).astype("int32")  # a prime; a wrap does no harm
    codes = ops.take(ids, first, axis=1) * factors + ops.take(ids, second, axis=1) + offsets
    start = np.zeros((count, data.outputs))
    effects = base.embedding(start, PRIOR, data, "embedding_pairs")(ops.mod(codes, count))
    return ops.sum(effects, axis=1, keepdims=True) * (unit / len(places) ** 0.5)


# --------------------------------------------------------------------------------------------------
# What stands below fits scales and mean targets, checks, reports, saves, and uses what was saved.
# --------------------------------------------------------------------------------------------------


# The scales of the numbers


def fit_scales(numbers, training):
    """Return medians, scales and edges of bins, (columns, BINS + 1), of the numerical columns.

    A scale is one over the distance of the quartiles. Edges are quantiles of which each value
    counts once, else they would crowd on the values of most rows. NaN is missing.
    """
    medians, scales, edges = [], [], []
    for column in numbers:
        known = numbers[column].iloc[training].dropna().to_numpy("float64")
        known = base.sample(known, 1_000_000)
        low, median, high = np.quantile(known, [0.25, 0.5, 0.75])
        shares = np.linspace(0, 1, 1 + np.clip(len(known) // 100, BINS, 2048))
        distinct = np.unique(np.quantile(known, shares))
        spread = high - low or max(high - distinct[0], distinct[-1] - low)
        chosen = np.linspace(0, len(distinct) - 1, BINS + 1).round().astype(int)
        medians.append(median)
        scales.append(1 / spread if spread > 1e-38 else 1.0)  # where float32 ends
        edges.append(distinct[chosen])
    return np.array(medians), np.array(scales), np.reshape(edges, (-1, BINS + 1))


# Mean targets

FOLDS = 5
WIDTH = 46_340  # the most ids of a column in a pair: the square of one more does not fit int32
SMOOTHING = 10  # the mean of so many rows counts as much as that of all rows
# edges of bins, (numbers, BINS + 1), and {group: a frame of its means, their codes the index}
Tables = namedtuple("Tables", "edges means")


def target_means(ids, numbers, pairs, data):
    """Return the mean targets of rows that are alike, a frame (rows, means), and their Tables.

    Alike in a group of columns, a tuple of their places: one of more than 20 categories or bins,
    two whose pairs of categories repeat, or two that interact, see below. Training rows are in five
    folds, and a row's means come from the other four, so that none sees its own target. All other
    rows get the mean of the five versions. There are none above 100,000 training rows, where
    vectors learn this better, nor of more than 20 classes, whose means would fill the memory.
    """
    if len(data.training) > 100_000 or data.outputs > 20:
        return pd.DataFrame(index=ids.index), None
    targets = data.target[data.training]
    targets = np.eye(data.outputs)[targets] if data.outputs > 1 else targets[:, None]
    weights = data.weights[data.training][:, None]
    fold = base.generator("folds").permutation(len(targets)) % FOLDS
    fit = functools.partial(cross_fit, targets=targets, weights=weights, fold=fold)

    *_, edges = fit_scales(numbers, data.training)
    edges = edges.astype("float32")
    cells = to_cells([ids, numbers], edges)[data.training]
    sizes = pd.DataFrame(cells).nunique().to_numpy()
    groups = [(place,) for place, size in enumerate(sizes) if size > 20]
    groups += [pair for pair in pairs if sizes[[*pair]].max() < WIDTH]
    if numbers.shape[1]:
        groups += interacting_pairs(cells, sizes, ids.shape[1], fit, targets, weights)
    if not groups:
        return pd.DataFrame(index=ids.index), None
    tables, fitted = {}, []
    for group, codes in zip(groups, group_codes(cells, groups)):
        tables[group], means = fit(codes)
        fitted.append(means.astype("float32"))
    tables = Tables(edges, tables)
    means = look_up_means([ids, numbers], tables)
    means.iloc[data.training] = np.hstack(fitted)
    return means, tables


def to_cells(frames, edges):
    """Return whole numbers, (rows, columns): ids, then the bin of each number.

    frames: the ids and, if any, the numbers. The lowest bin is 1; a missing number is in bin 0.
    Beside an unknown category all are in bin -1, which has no means: they would be those of the
    categories that the bin came with.
    """
    ids, *numbers = frames
    cells = [ids.to_numpy("int64")]
    known = (cells[0] > 0).all(axis=1)
    for column, edges_of_column in zip(*numbers, edges):
        values = numbers[0][column].to_numpy("float32")
        bins = np.where(np.isnan(values), 0, np.maximum(np.digitize(values, edges_of_column), 1))
        cells.append(np.where(known, bins, -1))
    return np.column_stack(cells)


def interacting_pairs(cells, sizes, first, fit, targets, weights):
    """Return the places of pairs of columns, one or both a number, that interact.

    Their cross-fitted means explain at least half a per cent more of the target's variance than
    those of either column: what boosting finds in two splits, and dense layers miss. At most 32,
    of the 16 columns with the most categories and the 16 numbers with the most bins. sizes: how
    many categories or bins each column has; first: the place of the first number.
    """
    order = [place for place in np.argsort(-sizes, kind="stable").tolist() if sizes[place] < WIDTH]
    columns = [place for place in order if place < first][:16]
    columns += [place for place in order if place >= first][:16]
    pairs = [pair for pair in itertools.combinations(sorted(columns), 2) if pair[1] >= first]
    groups = [(place,) for place in columns] + pairs
    explained, gains = {}, {}
    for group, codes in zip(groups, group_codes(cells, groups)):
        table, means = fit(codes)
        explained[group] = explained_variance(means, targets, weights)
        if len(group) == 2 and len(table) <= len(cells) / 2:
            gains[group] = explained[group] - max(explained[group[:1]], explained[group[1:]])
    best = sorted(gains, key=gains.get, reverse=True)[:32]
    return [pair for pair in best if gains[pair] >= 0.005]


def explained_variance(means, targets, weights):
    """Return the share of the targets' variance that means explain: their squared correlation.

    Where the correlation is negative, as it may be by chance, they explain nothing.
    """
    centred = [each - np.average(each, axis=0, weights=weights[:, 0])
               for each in (means[:, : targets.shape[1]], targets)]
    variances = np.prod([(weights * each**2).sum(axis=0) for each in centred], axis=0)
    covariances = (weights * np.prod(centred, axis=0)).sum(axis=0)
    return np.mean(np.maximum(covariances, 0) ** 2 / np.maximum(variances, 1e-30))


def group_codes(cells, groups):
    """Yield each group's codes, one a row: equal where all of the group's cells are."""
    for group in groups:
        code = 0
        for place in group:
            code = code * WIDTH + cells[:, place]
        yield code


def cross_fit(codes, targets, weights, fold):
    """Return a table of the mean targets of each code, and each row's by the other folds.

    Means are less that of all rows; those of classes, shares, are log-odds, which is what a network
    adds up. Where there are no numerical columns, the log of each count stands beside its means.
    """
    places, known = pd.factorize(codes)
    sums = np.zeros((FOLDS, len(known), targets.shape[1]))
    counts = np.zeros((FOLDS, len(known), 1))
    np.add.at(sums, (fold, places), targets * weights)
    np.add.at(counts, (fold, places), weights)
    sums, counts = sums.sum(axis=0) - sums, counts.sum(axis=0) - counts  # without each fold
    of_all = np.average(targets, axis=0, weights=weights[:, 0])
    means = (sums + SMOOTHING * of_all) / (counts + SMOOTHING)
    if base.TASK != "regression":
        means, of_all = np.log(means / (1 - means)), np.log(of_all / (1 - of_all))
    means = means - of_all
    if not NUMERICAL_COLUMNS:  # measured: with numbers beside them, counts do not help
        means = np.concatenate([means, np.log1p(counts) / 3], axis=2)
    table = pd.DataFrame(means.mean(axis=0), index=known, dtype="float32")
    return table, means[fold, places]


def look_up_means(frames, tables):
    """Return a frame of the means that tables have for some rows, 0 for what is not there."""
    codes = group_codes(to_cells(frames, tables.edges), tables.means)
    means = [table.reindex(code, fill_value=0) for code, table in zip(codes, tables.means.values())]
    return pd.DataFrame(np.hstack(means))


def is_known(ids, tables):
    """Return, (rows, means), 1 for each mean target, 0 where a cell of its group is forgotten, -1.

    Numbers count as forgotten where any category is, see to_cells.
    """
    known = ids >= 0
    known = ops.concatenate([known, ops.all(known, axis=1, keepdims=True)], axis=1)
    places = np.transpose([(group[0], group[-1]) for group in tables.means])
    first, last = np.minimum(places, ids.shape[1])  # the last column is for all numbers
    known = ops.logical_and(ops.take(known, first, axis=1), ops.take(known, last, axis=1))
    width = next(iter(tables.means.values())).shape[1]
    return ops.repeat(ops.cast(known, "float32"), width, axis=1)


def means_layer(inputs, tables):
    """Return what look_up_means does, in a network."""
    cells, *numbers = inputs
    if numbers:
        bins = ops.cast(ops.expand_dims(numbers[0], 2) >= tables.edges, "int32")
        bins = ops.where(ops.isnan(numbers[0]), 0, ops.maximum(ops.sum(bins, axis=2), 1))
        known = ops.all(cells > 0, axis=1, keepdims=True)
        cells = ops.concatenate([cells, ops.where(known, bins, -1)], axis=1)
    means = []
    for code, table in zip(group_codes(cells, tables.means), tables.means.values()):
        place = layers.IntegerLookup(vocabulary=table.index.to_numpy())(code)  # 0 if not there
        rows = np.vstack([np.zeros((1, table.shape[1])), table])
        means.append(layers.Embedding(*rows.shape, weights=[rows], trainable=False)(place))
    return layers.concatenate(means)


# The figure to beat


def boost(ids, numbers, data):
    """Return what scikit-learn's gradient boosting predicts for the test rows, from the same data.

    At most 1,000 iterations, of which those up to the best one on the validation rows count, on at
    most 1,000,000 training rows. Columns of up to 254 categories are given as categories, others
    as the mean target of their category (cross-fitted on the training rows).
    """
    training = base.sample(data.training, 1_000_000)
    validation = base.sample(data.validation, 125_000)
    if base.TASK != "regression":
        _, one_of_each_class = np.unique(data.target[data.training], return_index=True)
        training = np.union1d(training, data.training[one_of_each_class])
    many = [column for column in ids if ids[column].max() > 254]
    few = [column for column in ids if column not in many]
    encoded = "continuous" if base.TASK == "regression" else "auto"
    encoder = make_column_transformer(
        ("passthrough", few), (TargetEncoder(target_type=encoded), many), remainder="passthrough")

    def table(chosen):
        return pd.concat([ids.iloc[chosen], numbers.iloc[chosen]], axis=1)

    features = encoder.fit_transform(table(training), data.target[training])
    booster = fit_booster(features, training, encoder.transform(table(validation)), validation,
                          np.arange(len(few)), data)
    best = max(1, int(np.argmax(booster.validation_score_)))  # fit keeps the last, 50 later
    stages = getattr(booster, "staged_predict_proba", booster.staged_predict)

    def predict(chosen):
        staged = stages(encoder.transform(table(chosen)))
        return next(itertools.islice(staged, best - 1, None))

    predictions = base.in_batches(predict, data.test)
    return predictions[:, 1] if base.TASK == "binary" else predictions


def fit_booster(features, training, validation_features, validation, categorical, data):
    """Return a booster that has learned until the validation rows gained nothing for 50 iterations.

    Rare classes can make it diverge at once; then one that is regularized is tried as well.
    """
    regression = base.TASK == "regression"
    kind = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
    weights = [data.weights[rows] if base.WEIGHT_COLUMN else None  # None is quicker than all 1
               for rows in (training, validation)]
    boosters = []
    for strength in (0, 10):
        booster = kind(max_iter=1000, early_stopping=True, n_iter_no_change=50,
                       l2_regularization=strength, categorical_features=categorical,
                       random_state=base.SEED)
        booster.fit(features, data.target[training], weights[0], X_val=validation_features,
                    y_val=data.target[validation], sample_weight_val=weights[1])
        boosters.append(booster)
        if np.argmax(booster.validation_score_) > 50:
            break
    return max(boosters, key=lambda each: each.validation_score_.max())


def mean_prediction(data):
    """Return the mean of the training rows as the prediction for each test row."""
    if base.TASK == "regression":
        return np.zeros(len(data.test))
    shares = np.bincount(data.target[data.training], data.weights[data.training])
    shares = shares / shares.sum()
    return np.repeat([shares[1] if base.TASK == "binary" else shares], len(data.test), axis=0)


# The report


def compare(answers, alone, data):
    """Return the test figures of each model, the 95 % interval of its first one, and a verdict."""
    figures = {name: base.score(data, answer) for name, answer in answers.items()}
    final = figures.pop(FINAL)
    figures |= {base.ALONE: alone, FINAL: final}
    draws = base.bootstrap(answers, data)
    intervals = base.intervals(draws, data.target_info)
    return {"figures": figures, "intervals": intervals, "verdict": verdict(figures, draws)}


def print_report(report, row_count, unknown):
    """Print the figures of each model and what they say; unknown: each column's share of cells."""
    title = f"Test figures, {row_count:,} rows neither script trained on"
    table = pd.DataFrame(report["figures"])
    print(f"{title:<58}", *(f"{name:>14}" for name in table.index), f"  ({base.TARGET_COLUMN})")
    typical = table.abs().median(axis=1)
    for name in table:
        figures = map(base.written, table[name], typical)
        print(f"  {name:<56}", *(f"{figure:>14}" for figure in figures))
    print(f"  {report['verdict']}")
    if base.WEIGHT_COLUMN:
        print(f"  each row counts {base.WEIGHT_COLUMN} times")
    for column in CATEGORICAL_COLUMNS:
        if unknown[column] >= 0.01:
            print(f"  {unknown[column]:.1%} of the cells of {column} are unknown categories there")


def verdict(figures, draws):
    """Return in a sentence how the network compares with the mean and with boosting."""
    (first, ours), *others = figures[FINAL].items()
    theirs = figures[BOOSTING][first]
    if max(np.mean(draws[name] < draws[MEAN]) for name in (FINAL, BOOSTING)) < 0.975:
        return ("Nothing beats the mean by more than chance: these columns say little that holds "
                "for other rows.")

    def compared(name):
        ratio = ours / max(figures[name][first], 1e-12)
        return f"{abs(1 - ratio):.1%} {'below' if ratio < 1 else 'above'} that of"

    sentence = (f"The error ({first}) of {FINAL} is {compared(MEAN)} the mean and "
                f"{compared(BOOSTING)} gradient boosting; other test rows ")
    is_sure = not 0.025 < np.mean(draws[FINAL] < draws[BOOSTING]) < 0.975
    sentence += "would hardly turn that round." if is_sure else "might turn that round."
    for name, figure in others[:1]:
        sign = 1 if name in ("RMSE", "MAE") else -1  # of R², AUC and accuracy more is better
        if sign * (figure - figures[BOOSTING][name]) * (ours - theirs) < 0:
            why = {"RMSE": ": a few large errors weigh most", "MAE": ": large errors weigh less"}
            sentence += f" By {name} it is the other way round{why.get(name, '')}."
    return sentence


def column_worth(model, inputs, tables, data):
    """Return how far the test error rises when a column is shuffled, the largest rise first.

    On at most 5,000 test rows (permutation importance: Breiman 2001, Machine Learning 45).
    """
    rows = base.sample(data.test, 5000)
    order = base.generator("shuffle").permutation(len(rows))
    frames = [frame.iloc[rows].reset_index(drop=True) for frame in inputs]
    count = 1 + bool(NUMERICAL_COLUMNS)  # without the means

    def figure(changed):
        answers = base.predict_rows(model, changed, np.arange(len(rows)))
        return base.named_error(base.mean_error(data, rows, answers), data.target_info)[1]

    own, worth = figure(frames), []
    for i, frame in enumerate(frames[:count]):
        for column in frame:
            shuffled = [*frames]
            shuffled[i] = frame.copy()
            shuffled[i][column] = frame[column].to_numpy()[order]
            if tables:
                shuffled[-1] = look_up_means(shuffled[:count], tables)
            value = figure(shuffled)
            worth.append({"column": column, "figure": value, "rise": value - own})
    return sorted(worth, key=lambda each: -each["rise"])


def print_worth(worth, figures):
    """Print what each column is worth; figures: those of the same model in the report."""
    name, own = next(iter(figures.items()))
    print(f"What each column is worth: how far the {name} rises when it is shuffled")
    for each in worth:
        print(f"  {each['column']:<56} {base.written(each['rise'], own):>14}")


# The files

MODEL_FILE = "embed_model.keras"


def check_rows(data, run, vocabularies):
    """Raise base.InputError where the vectors saw other rows, or a model could not be saved."""
    if importlib.util.find_spec("tensorflow") is None:
        raise base.InputError("The model file reads text by TensorFlow, which is not installed: "
                              "pip install tensorflow; what trains may be another backend.")
    if not data.fingerprints.items() <= run["rows"].items():
        raise base.InputError(f"{base.EMBEDDINGS_DIR}/ was learned from other rows or settings "
                              f"than {base.DATA_FILE} has now, so test rows may have been trained "
                              "on: run build_embeddings.py again.")
    for column, vocabulary in vocabularies.items():
        if vocabulary["category"].str.endswith("\0").any():
            raise base.InputError(f"Column {column!r} has cells that end in NUL, which the model "
                                  "file cannot hold: remove it there.")
    for column in NUMERICAL_COLUMNS:
        if data.table[column].iloc[data.training].isna().all():
            raise base.InputError(f"Column {column!r} has no number in the training rows: "
                                  "take it off NUMERICAL_COLUMNS.")


def second_look(folder, report, predictions, worth, history, data):
    """Return what look.html shows after the second script."""
    look, info = base.read_look(folder), data.target_info
    intervals = look.get("intervals", {}) | report["intervals"]
    training = base.describe_training("build_embed_model.py", history, info)
    look["training"] = [*look.get("training", [])[:1], training]
    look["report"] = {**report, "intervals": intervals}
    look["worth"], target = worth, data.target[data.test]
    if base.TASK == "regression":
        few = base.sample(np.arange(len(target)), 2000)
        look["answers"] = {"predicted": base.rounded(base.to_units(predictions[few], info)),
                           "actual": base.rounded(base.to_units(target[few], info))}
        return look
    chances = predictions if base.TASK == "binary" else predictions.max(axis=1)
    true = target if base.TASK == "binary" else target == predictions.argmax(axis=1)
    weights = data.weights[data.test]
    groups = np.array_split(np.argsort(chances), min(10, len(target)))
    look["answers"] = {"roc": None, "calibration": [
        [*base.rounded(np.average([chances[group], true[group]], 1, weights[group])), len(group)]
        for group in groups]}
    if base.TASK == "binary" and len(np.unique(target)) == 2:
        curve = roc_curve(target, chances, sample_weight=weights)
        curve = np.stack(curve[:2], axis=1)
        few = np.linspace(0, len(curve) - 1, min(200, len(curve))).astype(int)
        look["answers"]["roc"] = [base.rounded(point) for point in curve[few]]
    return look


def raw_model(model, vocabularies, tables, data):
    """Return a model that takes raw columns, text and numbers, and predicts in units."""
    inputs = {}
    for i, column in enumerate([*CATEGORICAL_COLUMNS, *NUMERICAL_COLUMNS]):
        dtype = "string" if column in CATEGORICAL_COLUMNS else "float32"
        dtype = "float64" if column in data.centres else dtype
        name = f"column_{i}" if TAKEN.fullmatch(column) else column
        inputs[column] = keras.Input((), dtype=dtype, name=name)
    ids = []
    for column, vocabulary in vocabularies.items():
        known = list(vocabulary["category"][1:])
        unknown = "?" * (1 + max(map(len, known)))  # longer than each category, it can be none
        ids.append(layers.StringLookup(vocabulary=known, oov_token=unknown)(inputs[column]))
    stacked = [ops.cast(ops.stack(ids, axis=1), "int32")]
    if NUMERICAL_COLUMNS:
        numbers = {column: inputs[column] for column in NUMERICAL_COLUMNS}
        for column, centre in data.centres.items():
            numbers[column] = ops.cast(numbers[column] - centre, "float32")
        stacked.append(ops.stack(list(numbers.values()), axis=1))
    if tables:
        stacked.append(means_layer(stacked, tables))
    network = keras.Model(model.inputs, model.outputs[0])  # without the loss, which no file holds
    predictions = ops.mean(network(stacked), axis=1)
    if base.TASK == "regression":  # float32 would not tell values around 1e9 apart
        info = data.target_info
        predictions = ops.cast(predictions, "float64") * info["std"] + info["mean"]
        predictions = ops.expm1(predictions) if base.LOG_TARGET else predictions
    return keras.Model(inputs, predictions)


# Names that no input may bear, because something inside the model does, or Keras refuses them
INSIDE = "|".join(["column", "functional", "rescaling", r"\w+_lookup", "embedding", *dir(ops)])
TAKEN = re.compile(rf".*\W.*|[\d_].*|({INSIDE})(_\d+)?", re.ASCII | re.DOTALL)


def save_model(folder, run, model, report, look):
    """Save the model, the report and look.js beside the vectors that it was trained on."""
    if base.read_run(folder) != run:
        raise base.InputError(f"Another run has written to {folder}/ meanwhile: "
                              "run build_embed_model.py again.")
    names = {column: tensor.name for column, tensor in model.input.items()}
    run = {**run, "test": report["figures"], "keras": keras.__version__, "inputs": names}
    with base.saving(folder, run) as new:
        model.save(new / MODEL_FILE)
        base.write_look(new, look)
        run["model"] = hashlib.sha256((new / MODEL_FILE).read_bytes()).hexdigest()
    print(f"Saved {folder / MODEL_FILE}")
    if base.TASK != "regression":
        classes = run["target"]["classes"][1 if base.TASK == "binary" else 0 :]
        print(f"  predict returns the probability of {', '.join(map(repr, classes))}")


# Using what was learned


def predict(frame):
    """Return the saved model's predictions for a pandas frame of raw columns, one for each row.

    Regression: float64 (rows,), in the target's units. Binary: the probability of the class that is
    last when sorted. Multiclass: (rows, classes), sorted. Other columns are ignored. Warns of a
    column with far more unknown or empty cells than before, or without any number. Raises
    base.InputError.
    """
    if not base.tf:
        raise base.InputError("predict reads text, which only TensorFlow can: set "
                              "KERAS_BACKEND=tensorflow; the model file may stay.")
    folder = base.here(base.EMBEDDINGS_DIR)
    run = base.read_run(folder)
    model = load_model(folder / MODEL_FILE, run.get("model"), run.get("keras"))
    cells = {}
    for column, kind in model.input.items():
        if kind.dtype == "string":
            cells[column], _ = read_text(frame, column, run)
        else:
            cells[column] = read_numbers(frame, column).astype(kind.dtype)
    if not len(frame):
        return np.empty((0, *model.output_shape[1:]))

    def predict_batch(rows):
        return model.predict_on_batch({column: values[rows] for column, values in cells.items()})

    return base.in_batches(predict_batch, np.arange(len(frame)), base.rows_at_once(model))


def classify(frame):
    """Return the most probable class of each row of a frame, as it is written in the file."""
    classes = base.read_run(base.here(base.EMBEDDINGS_DIR)).get("target", {}).get("classes")
    if not classes:
        raise base.InputError("classify needs a model of classes: TASK was 'regression', or no run "
                              "is saved.")
    chances = predict(frame)
    places = chances.argmax(axis=1) if chances.ndim == 2 else (chances > 0.5).astype(int)
    return np.array(classes, object)[places]


def embed(frame):
    """Return the frame with each categorical column replaced by its vector, as it was saved.

    The columns of a vector of "dest" are dest_0, dest_1, ..., float32, behind the frame's other
    columns, of which target and weight are left out. A category or missing cell that training did
    not have gets row 0. Warns as predict does. Raises base.InputError.
    """
    run, columns = base.read_run(base.here(base.EMBEDDINGS_DIR)), CATEGORICAL_COLUMNS
    if "inputs" in run:  # those of the saved model, whatever the edit block says by now
        columns = [column for column in run["columns"] if column in run["inputs"]]
    vectors = []
    for column in columns:
        _, ids = read_text(frame, column, run)
        weights = load_embedding(column, run).weights[ids]
        vectors.append(pd.DataFrame(weights, index=frame.index).add_prefix(f"{column}_"))
    vectors = pd.concat(vectors, axis=1)
    settings = base.Settings(*run["rows"]["settings"])
    inputs = {*run.get("inputs", NUMERICAL_COLUMNS)}
    gone = {*columns} | ({settings.target_column, settings.weight_column} - inputs)
    others = frame.drop(columns=[*gone], errors="ignore")
    for name in others.columns.intersection(vectors.columns):
        raise base.InputError(f"Column {name!r} of the frame bears the name of a part of a vector: "
                              "rename it.")
    return pd.concat([others, vectors], axis=1)


Embedding = namedtuple("Embedding", "weights vocabulary known by_value look_missing empty")


@functools.lru_cache(maxsize=256)
def read_embedding(file, fingerprint):
    """Return a saved Embedding, which is read once a run.

    known: its categories; by_value: the category of each number or truth value; look_missing:
    whether pandas reads one of them as missing, as "NA"; empty: the share of the training cells
    that are empty.
    """
    try:
        weights = np.load(f"{file}.npy", allow_pickle=False)
        kinds = {"category": str, "count": "int64"}
        vocabulary = pd.read_csv(f"{file}.csv", dtype=kinds, keep_default_na=False)
        whole = weights.shape[:1] == vocabulary.shape[:1] and vocabulary["count"][0] == 0
        if not whole or base.fingerprint_embedding(weights, vocabulary) != fingerprint:
            raise ValueError("they are not the pair that one run saved")
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise base.InputError(f"{file}.npy and .csv cannot be used ({error}): "
                              "run build_embeddings.py again.") from error
    known = pd.Index(vocabulary["category"][1:], dtype=object)
    values = to_values(known.to_series())
    by_value = pd.Series(known, index=values)[values.notna().to_numpy()]
    as_pandas_reads = pd.read_csv(f"{file}.csv", dtype=kinds)["category"][1:]
    look_missing = (as_pandas_reads.isna() & (vocabulary["category"][1:] != "")).any()
    counts = vocabulary["count"]
    empty = counts[vocabulary["category"] == ""].sum() / counts.sum()
    return Embedding(weights, vocabulary, known, by_value, look_missing, empty)


@functools.lru_cache(maxsize=1)
def load_model(file, checksum, version):
    """Return the saved model with this checksum; raises base.InputError where there is none."""
    try:
        if hashlib.sha256(file.read_bytes()).hexdigest() != checksum:
            raise ValueError("it is not the one that this run saved")
        return keras.models.load_model(file, safe_mode=True)
    except Exception as error:  # an older Keras refuses what it does not know in many ways
        versions = f"; Keras {version} saved it, this is {keras.__version__}"
        same = version in (None, keras.__version__)
        reason = str(error).partition("\n")[0] + ("" if same else versions)
        raise base.InputError(f"{file} cannot be used ({reason}): run build_embeddings.py, then "
                              "build_embed_model.py.") from error


# An input may bear another name than its column, see TAKEN
warnings.filterwarnings("ignore", message="When providing `inputs` as a dict")


def read_numbers(frame, column):
    """Return a numerical column of a frame as float64, NaN where missing."""
    cells = only_column(frame, column)
    numbers = base.to_numbers(np.where(pd.notna(cells), cells, ""))
    if np.isinf(numbers).any():
        raise base.InputError(f"Column {column!r} holds {cells[np.isinf(numbers)][0]!r}, "
                              "which is not a number that can be used.")
    if len(numbers) >= 3 and np.isnan(numbers).all():
        warnings.warn(f"Column {column!r} is missing in all rows.", stacklevel=3)
    return numbers


def read_text(frame, column, run):
    """Return a categorical column of a frame as text of the file, "" where missing, and its ids.

    Where pandas has read text as numbers or truth values, each becomes the category of the same
    value: 1 and 1.0 become "1", or "01" where that is the one there is; True, TRUE and 1 become
    what the file has for true. Warns of far more unknown or empty cells than before. Raises
    base.InputError where what stood in the file is open.
    """
    cells = only_column(frame, column)
    *_, known, by_value, look_missing, empty = load_embedding(column, run)
    present = pd.notna(cells)
    remedy = f"read the file with dtype={{{column!r}: str}}, keep_default_na=False"
    if not present.all() and look_missing:
        raise base.InputError(f"Missing cells of column {column!r} may have been text such as "
                              f"'NA': {remedy}.")
    texts = np.where(present, cells, "")
    if not is_text(texts, known):
        filled = texts != ""
        numbers = to_values(pd.Series(texts[filled]))
        # from 2**53 on floats skip whole numbers
        if by_value.index.has_duplicates or not (numbers.abs() < 2**53).all():
            raise base.InputError(f"Column {column!r} is not the text of the file, and which "
                                  f"category is meant is open: {remedy}.")
        texts[filled] = numbers.map(by_value).fillna(pd.Series(texts[filled]).astype(str))
    ids = known.get_indexer(texts) + 1
    odd = {"unknown categories": (ids == 0, run["unknown"].get(column, 0)),
           "empty": ((texts == "") & (ids > 0), empty)}
    for kind, (found, usual) in odd.items():
        if found.sum() >= 3 and found.mean() > 2 * usual + 0.05:
            warnings.warn(f"Column {column!r}: {found.mean():.0%} of the cells are {kind}, such as "
                          f"{texts[found][0][:40]!r}; where the model was made, {usual:.1%} were.",
                          stacklevel=3)
    return texts, ids


def is_text(texts, known):
    """Return whether cells are text of the file, not numbers or other spellings of true, false."""
    kind = pd.api.types.infer_dtype(texts[texts != ""])
    few = kind == "string" and len(known) < 9
    if few and all(text.lower() in TRUTHS for text in [*known, *pd.unique(texts)]):
        return bool((known.get_indexer(texts) >= 0).all())
    return kind in ("string", "empty")


TRUTHS = {"true": 1, "false": 0, "1": 1, "0": 0, "": np.nan}


def to_values(texts):
    """Return the numbers that texts, numbers or truth values stand for, NaN where none."""
    lower = texts.astype(str).str.lower()
    return pd.to_numeric(lower.map(lambda text: TRUTHS.get(text, text)), errors="coerce")


def only_column(frame, column):
    """Return a column of a frame as objects; raises base.InputError where it is not there once."""
    if not isinstance(frame, pd.DataFrame):
        raise base.InputError(f"predict and embed take a pandas DataFrame, not {type(frame)}: read "
                              "the file with pandas.read_csv, or use frame[[column]].")
    if list(frame.columns).count(column) != 1:
        raise base.InputError(f"The frame has no column {column!r}, or two: the model needs one; "
                              "if it is not known, add it empty.")
    return frame[column].to_numpy(object)


if __name__ == "__main__":
    base.run_script(main, sys.argv[1:])
