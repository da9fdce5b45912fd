"""Train a model on the embeddings that build_embeddings.py learned together with the numerical columns.

    python build_embeddings.py
    python build_embed_model.py

Every category is replaced by its vector from embeddings/<column>.npy, the numerical columns are added, and a network is
trained on both, with one number more for each pair of categories, on the rows that build_embeddings.py trained on. The
report compares it, on test rows that neither script trained on, with gradient boosting. The model is saved as
embeddings/embed_model.keras: it takes the columns as they stand in the file (text, unscaled numbers, missing cells) and
answers in the target's own units or with class probabilities. predict(frame) and embed(frame) below use what was saved.

Sources: Gorishniy, Rubachev and Babenko, On Embeddings for Numerical Features in Tabular Deep Learning, 2022,
arXiv:2203.05556; Gorishniy, Kotelnikov and Babenko, TabM, 2024, arXiv:2410.24210; Holzmüller, Grinsztajn and Steinwart,
Better by Default (RealMLP), 2024, arXiv:2407.04491; Cheng et al., Wide & Deep Learning, 2016, arXiv:1606.07792.
"""

import functools
import hashlib
import itertools
import re
import warnings
from multiprocessing.pool import ThreadPool
from pathlib import Path

import build_embeddings as base  # first: it keeps TensorFlow's start-up chatter off the screen
import keras
import numpy as np
import pandas as pd
from keras import layers, ops
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.preprocessing import TargetEncoder

# ----------------------------------------------------------------------------------------------------------------------
# Edit this block for your own table. The table itself, its target and the task are set in build_embeddings.py.

# data
CATEGORICAL_COLUMNS = base.CATEGORICAL_COLUMNS  # or a shorter list: any column that has an embedding
NUMERICAL_COLUMNS = [  # may be empty
    "sched_dep", "distance", "plane_year", "seats",
    "temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib",
]  # fmt: skip

# training
TRAIN_EMBEDDINGS = True  # False keeps the loaded vectors exactly as they are: for vectors that must mean the same later
EPOCHS = None  # None: as in build_embeddings.py
LEARNING_RATE = 5e-3  # the highest; lower it if training diverges
# ----------------------------------------------------------------------------------------------------------------------

MODEL_FILE = "embed_model.keras"
warnings.filterwarnings("ignore", message="When providing `inputs` as a dict")  # not every column's name can be an input's
# the usual texts that pandas takes for missing cells unless told not to
READ_AS_MISSING = ["NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>", "#N/A", "#NA", "#N/A N/A", "-nan", "-NaN"]


def load_embedding(column, run):
    """Return the weights (cardinality + 1, dimension) and the vocabulary of a column, as build_embeddings.py saved them.

    Raises base.InputError where the two files are missing, damaged, or not of one and the same run.
    """
    if column not in run.get("columns", {}):
        raise base.InputError(f"{base.EMBEDDINGS_DIR}/ has no embedding of {column!r}: run build_embeddings.py with it first.")
    file = Path(base.EMBEDDINGS_DIR) / run["columns"][column].get("file", column)
    try:
        weights = np.load(f"{file}.npy", allow_pickle=False)
        vocabulary = pd.read_csv(f"{file}.csv", dtype={"category": str, "count": "int64"}, keep_default_na=False)
        whole = weights.shape[:1] == vocabulary.shape[:1] and vocabulary["count"][0] == 0  # row 0 alone stands for no training row
        if not whole or base.fingerprint_embedding(weights, vocabulary) != run["columns"][column]["fingerprint"]:
            raise ValueError("they are not the pair that one run saved")
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise base.InputError(f"{file}.npy and .csv cannot be used ({error}): run build_embeddings.py again.") from error
    return weights, vocabulary


def embed_numbers(numbers, columns, training):
    """Return the numerical columns as a network can use them: (rows, features) for numbers (rows, columns) with NaN.

    Each column is centred on its median, divided by the distance of its quartiles and softly clipped to -3 ... 3
    (RealMLP), so that no outlier weighs more than 3; a missing cell becomes 0 and sets a mark. Each column is then also
    seen as a ladder: how far the number is up each of 64 steps between the column's quantiles, 0 to 1, from which a
    small layer makes bends and jumps (piecewise-linear embedding, Gorishniy 2022). Quantiles that are one and the same
    value count once, so that the steps do not crowd on the values of most rows. columns: those of the table, whose
    training rows set the scales.
    """
    steps, features = 64, 12
    rungs, quartiles = [], []
    for column in columns:
        known = column[training]
        known = base.sample(known[~np.isnan(known)], 1_000_000).astype("float64")
        shares = np.linspace(0, 1, 1 + np.clip(len(known) // 100, steps, 2048))  # 100 rows apart, if so many: closer is noise
        distinct = np.unique(np.quantile(known, shares))
        rungs.append(distinct[np.linspace(0, len(distinct) - 1, steps + 1).round().astype(int)])
        quartiles.append(np.quantile(known, [0.25, 0.5, 0.75]))
    rungs, (low, median, high) = np.array(rungs), np.transpose(quartiles)
    spread = np.where(high > low, high - low, np.maximum(high - rungs[:, 0], rungs[:, -1] - low))
    scale = 1 / np.where(spread > 1e-38, spread, 1.0)  # float32 ends at 1e38
    rungs = (rungs - median[:, None]) * scale[:, None]
    heights = 1 / np.where(np.diff(rungs) > 1e-30, np.diff(rungs), 1.0)
    scaled = layers.Rescaling(scale.tolist(), offset=(-median * scale).tolist())(numbers)
    missing = ops.isnan(numbers)
    scaled = ops.clip(ops.where(missing, 0.0, scaled), -1e6, 1e6)  # a square must not overflow
    ladder = layers.Rescaling(heights.tolist(), offset=(-rungs[:, :-1] * heights).tolist())
    climbed = ops.clip(ladder(ops.repeat(ops.expand_dims(scaled, 2), steps, axis=2)), 0.0, 1.0)
    bends = layers.EinsumDense(
        "rcs,csf->rcf",
        output_shape=(len(columns), features),
        bias_axes="cf",
        activation="relu",
        kernel_initializer=keras.initializers.RandomNormal(stddev=steps**-0.5),
    )(climbed)
    clipped = scaled / ops.sqrt(1 + ops.square(scaled / 3))
    return layers.concatenate([layers.Flatten()(bends), clipped, ops.cast(missing, "float32")])


def pairs_that_repeat(ids, training):
    """Return the pairs of columns, as positions in ids, whose pairs of categories are worth a number each.

    In a sample of the training rows they come up twice or more on average: the number of one that comes up once would hold
    that row by heart. And there are more of them than categories in either column: of a plane and its maker the plane says
    all. Of more than 16 columns those with the most categories are taken.
    """
    cells = pd.DataFrame(base.gather(ids, base.sample(training, 250_000)))
    columns = cells.nunique().nlargest(16)
    counts = {pair: len(cells[[*pair]].drop_duplicates()) for pair in itertools.combinations(columns.index, 2)}
    return [pair for pair, count in counts.items() if columns[[*pair]].max() < count <= len(cells) / 2]


def pair_effects(ids, pairs, sizes, target_info):
    """Return what pairs of its categories add to a row's answers, (rows, 1, outputs): one learned number for each pair.

    Dense layers find what a category adds, but hardly what it adds beside one other category; these numbers can hold it
    (the wide part of Wide & Deep: Cheng et al. 2016, arXiv:1606.07792). The embeddings' prior keeps them at zero unless
    their rows say otherwise. Their unit is three times what the vectors alone leave unexplained of the target's standard
    deviation, so that they do not drown a small remainder, and 1 with classes; both were measured. pairs: those of
    pairs_that_repeat; sizes: the rows of each column's matrix.
    """
    first, second = np.transpose(pairs)
    sizes = np.array(sizes)
    ends = np.cumsum(sizes[first] * sizes[second])
    count = min(int(ends[-1]), 2**18 - 5)  # a prime; of more pairs than this, some share a number
    offsets, factors = (-ends % count).astype("int32"), np.minimum(sizes[second], 104_729).astype("int32")
    positions = ops.take(ids, first, axis=1) * factors + ops.take(ids, second, axis=1) + offsets
    effects = layers.Embedding(count, base.output_count(target_info), "zeros", name="embedding_pairs")
    unit = 3 * target_info.get("unexplained", 1 / 3) / len(pairs) ** 0.5  # their sum does not grow with the pairs
    return ops.sum(effects(ops.mod(positions, count)), axis=1, keepdims=True) * unit


def build_model(matrices, ids, numbers, training, target_info, recipe):
    """Return the network: ids (rows, columns) int32 and, if any, numbers (rows, columns) -> answers of its members.

    matrices: the saved weights of each categorical column; ids and numbers: the table's columns.
    """
    inputs = [keras.Input((len(matrices),), dtype="int32")]
    parts = []
    for i, weights in enumerate(matrices):
        dim = weights.shape[1]
        layer = layers.Embedding(*weights.shape, "zeros", trainable=TRAIN_EMBEDDINGS, name=f"embedding_{i}")
        vectors = layer(inputs[0][:, i])
        layer.set_weights([weights])
        # Eight numbers are what the network sees of a longer vector: fewer to learn a rare category's rows by heart.
        parts.append(layers.Dense(8, use_bias=False)(vectors) if dim > 8 else vectors)
    if numbers:
        inputs.append(keras.Input((len(numbers),)))
        parts.append(embed_numbers(inputs[1], numbers, training))
    # with more than 20 classes the pairs' numbers would fill the memory
    pairs = pairs_that_repeat(ids, training) if base.output_count(target_info) <= 20 else []
    effects = pair_effects(inputs[0], pairs, [len(weights) for weights in matrices], target_info) if pairs else 0.0
    return keras.Model(inputs, base.dense_layers(layers.concatenate(parts), target_info, recipe, effects))


def boost(ids, numbers, target, training, validation, test):
    """Return the test answers of scikit-learn's gradient boosting, the figure to beat, from these rows of the columns.

    At most 1,000 iterations, of which those up to the best one on the validation rows count; at most 1,000,000 training and
    125,000 validation rows, as each cell takes eight bytes, twice. Columns with up to 254 categories are given as categories,
    others as the mean target of their category (cross-fitted on the training rows).
    """
    sampled, validation = base.sample(training, 1_000_000), base.sample(validation, 125_000)
    if base.TASK != "regression":  # a row of each class: there would be no answer for one that the sample misses
        sampled = np.union1d(sampled, training[np.unique(target[training], return_index=True)[1]])
    few, many = [c for c in ids if c.max() <= 254], [c for c in ids if c.max() > 254]
    encoder = TargetEncoder(target_type="continuous" if base.TASK == "regression" else "auto")

    def features(rows, fit=False):
        columns = [column[rows] for column in few + numbers]  # row 0, in no training row, is as good as missing to the booster
        if many:
            cells = base.gather(many, rows)
            columns.append(encoder.fit_transform(cells, target[rows]) if fit else encoder.transform(cells))
        return np.column_stack(columns)

    kind = HistGradientBoostingRegressor if base.TASK == "regression" else HistGradientBoostingClassifier
    booster = kind(
        max_iter=1000,
        early_stopping=True,
        n_iter_no_change=50,
        categorical_features=np.arange(len(few)),
        random_state=base.SEED,
    )
    booster.fit(features(sampled, fit=True), target[sampled], X_val=features(validation), y_val=target[validation])
    best = max(1, int(np.argmax(booster.validation_score_)))  # which begins before the first iteration; fit keeps the last one
    stages = booster.staged_predict if base.TASK == "regression" else booster.staged_predict_proba
    answers = base.in_pieces(lambda rows: next(itertools.islice(stages(features(rows)), best - 1, None)), test)
    return answers[:, 1] if base.TASK == "binary" else answers


def raw_model(model, vocabularies, target_info):
    """Wrap a trained model so that it takes raw columns, a dict of text and numbers, and answers in the target's units."""
    columns = [*CATEGORICAL_COLUMNS, *NUMERICAL_COLUMNS]
    # what is inside the model bears names such as "mean" and "stack_1", and no input may share one
    taken = re.compile(rf".*\W.*|\d.*|(functional|rescaling|string_lookup|{'|'.join(dir(ops))})(_\d+)?", re.ASCII | re.DOTALL)
    names = [f"{i}_column" if taken.fullmatch(c) else c for i, c in enumerate(columns)]
    dtypes = ["string"] * len(CATEGORICAL_COLUMNS) + ["float32"] * len(NUMERICAL_COLUMNS)
    inputs = {c: keras.Input((), dtype=dtype, name=name) for c, name, dtype in zip(columns, names, dtypes)}
    ids = [
        # the layer's own word for unknown must not be a category: longer than every category, it cannot be one
        layers.StringLookup(vocabulary=list(words), oov_token="?" * (1 + words.str.len().max()))(inputs[column])
        for column, words in zip(CATEGORICAL_COLUMNS, (vocabulary["category"][1:] for vocabulary in vocabularies))
    ]
    stacked = [ops.cast(ops.stack(ids, axis=1), "int32")]
    if NUMERICAL_COLUMNS:
        stacked.append(ops.stack([inputs[column] for column in NUMERICAL_COLUMNS], axis=1))
    network = keras.Model(model.inputs, model.outputs[0])  # without the loss, a function that a file cannot hold
    answers = ops.mean(network(stacked), axis=1)
    if base.TASK == "regression":
        # float32 would not tell apart answers around 1e9 that differ by less than 64
        answers = layers.Rescaling(target_info["std"], target_info["mean"], dtype="float64")(answers)
        answers = ops.expm1(answers) if base.LOG_TARGET else answers
    return keras.Model(inputs, answers)


@base.plain_errors()
def main():
    base.check_columns(CATEGORICAL_COLUMNS, NUMERICAL_COLUMNS)
    base.join_processes()
    keras.utils.set_random_seed(base.SEED)
    with base.locked_folder() as folder, ThreadPool(1) as beside:
        print(f"Loading embeddings from {folder}/")
        run = base.read_run(folder)
        embeddings = [load_embedding(column, run) for column in CATEGORICAL_COLUMNS]
        table, (training, validation, test), target, _, rows = base.load_rows(CATEGORICAL_COLUMNS, NUMERICAL_COLUMNS)
        if not rows.items() <= run["rows"].items():
            raise base.InputError(
                f"{folder}/ was learned from other rows or settings than those of {base.DATA_FILE} now, so test rows may "
                "have been trained on: run build_embeddings.py again."
            )
        matrices, vocabularies = zip(*embeddings)
        target_info = run["target"]
        ids = [base.row_numbers(table.pop(c), vocabulary) for c, vocabulary in zip(CATEGORICAL_COLUMNS, vocabularies)]
        numbers = [table.pop(column) for column in NUMERICAL_COLUMNS]
        for column, vocabulary in zip(CATEGORICAL_COLUMNS, vocabularies):
            if vocabulary["category"].str.endswith("\0").any():
                raise base.InputError(f"Column {column!r} has cells that end in NUL, which the model file cannot hold: remove it there.")
        for column, values in zip(NUMERICAL_COLUMNS, numbers):
            if np.isnan(values[training]).all():
                raise base.InputError(f"Column {column!r} has no number in the training rows: take it off NUMERICAL_COLUMNS.")

        with base.stage(f"Training on {len(matrices)} embeddings + {len(NUMERICAL_COLUMNS)} numerical columns, beside gradient boosting"):
            if not base.PROCESS:  # as a thread: the steps of a small network leave part of the processors idle
                boosting = beside.apply_async(boost, (ids, numbers, target, training, validation, test))
            recipe = base.choose_recipe(len(training), EPOCHS, 3_000_000)
            model = build_model(matrices, ids, numbers, training, target_info, recipe)
            del embeddings, matrices  # the model has a copy
            inputs = [ids, numbers] if numbers else [ids]
            model = base.train(model, inputs, target, training, validation, recipe, LEARNING_RATE)
        if base.PROCESS:
            return
        answers = base.answer(model, inputs, test)
        with base.stage("Waiting for gradient boosting: at most 1,000 iterations on up to a million of the same rows"):
            boosted = boosting.get()

        shares = 0.0 if base.TASK == "regression" else np.bincount(target[training]) / len(training)
        mean = np.broadcast_to(shares[1] if base.TASK == "binary" else shares, answers.shape)
        report = {
            "mean of the training rows": base.score(target[test], mean, target_info),
            "gradient boosting (scikit-learn)": base.score(target[test], boosted, target_info),
            base.ALONE: run["test"][base.ALONE],
            "embeddings + numerical columns": base.score(target[test], answers, target_info),
        }
        title = f"Test figures, {len(test):,} rows neither script trained on"
        print(f"{title:<58}", *(f"{name:>14}" for name in report[base.ALONE]), f"  ({base.TARGET_COLUMN})")
        for name, figures in report.items():
            print(f"  {name:<56}", *(f"{figure:>14.4g}" for figure in figures.values()))
        del ids, numbers, inputs  # their memory serves to save a large model
        file = folder / ".saving" / MODEL_FILE
        raw_model(model, vocabularies, target_info).save(file)
        base.save_run(folder, {**run, "test": report, "model": hashlib.sha256(file.read_bytes()).hexdigest()})
        print(f"Saved {folder / MODEL_FILE}")
        if base.TASK != "regression":
            classes = target_info["classes"][1 if base.TASK == "binary" else 0 :]
            print(f"  predict answers the probability of {', '.join(map(repr, classes))}")


# Using what was learned


def read_cells(frame, column, vocabulary=None):
    """Return a column of a frame as it stood in the file: an array of text, or without a vocabulary of float32 numbers.

    Where pandas has read a categorical column's text as numbers or truth values, each becomes the category of the same
    value: 1 and 1.0 become "1", or "01" where that is the one there is. Missing cells are "" or NaN. Raises
    base.InputError where the column is not there, or what stood in the file cannot be told any more.
    """
    if list(frame.columns).count(column) != 1:
        raise base.InputError(f"The frame has no column {column!r}, or two: the model needs one; if it is not known, add it empty.")
    cells = frame[column].astype(object).reset_index(drop=True)
    if vocabulary is None:
        numbers = base.to_numbers(cells.where(cells.notna(), "").tolist())
        if np.isinf(numbers).any():
            raise base.InputError(f"Column {column!r} holds {cells[np.isinf(numbers)].iloc[0]!r}, which is not a number that can be used.")
        return numbers.astype("float32")
    known, present = vocabulary["category"][1:], cells.notna()
    kind = pd.api.types.infer_dtype(cells[present])
    remedy = f"read the file with dtype={{{column!r}: str}}, keep_default_na=False"
    if not present.all() and known.isin(READ_AS_MISSING).any():
        raise base.InputError(f"Missing cells of column {column!r} may have been text such as 'NA': {remedy}.")
    if kind not in ("string", "empty"):
        values = known.str.lower().replace({"true": 1, "false": 0}) if kind == "boolean" else known
        by_value = pd.Series(known.to_numpy(), index=pd.to_numeric(values, errors="coerce"))
        by_value = by_value[by_value.index.notna()]
        numbers = pd.to_numeric(cells, errors="coerce") + 0  # truth values become 1 and 0
        vague = numbers[present].isna() | (numbers[present].abs() >= 2**53)  # from there on floats skip whole numbers
        if by_value.index.has_duplicates or vague.any():
            raise base.InputError(f"Column {column!r} is not the text of the file, and which category is meant is open: {remedy}.")
        cells = numbers.map(by_value).fillna(cells.astype(str))
    return cells.where(present, "").to_numpy(object)


@functools.lru_cache(maxsize=1)
def load_model(file, checksum):
    """Return the saved model with this checksum, loaded once; raises base.InputError where there is none, or another."""
    try:
        if hashlib.sha256(file.read_bytes()).hexdigest() != checksum:
            raise ValueError("it is not the one that this run saved")
        return keras.models.load_model(file, safe_mode=True)
    except (OSError, ValueError) as error:
        raise base.InputError(f"{file} cannot be used ({error}): run build_embeddings.py, then build_embed_model.py.") from error


def predict(frame):
    """Return the saved model's answers for a pandas frame of raw columns, one for each row, in the frame's order.

    Regression: float64 (rows,), in the target's units. Binary: the probability of the class that is last when sorted.
    Multiclass: (rows, classes), classes sorted. Other columns than the model's are ignored. Raises base.InputError.
    """
    if not base.tf:
        raise base.InputError("predict reads text, which only TensorFlow can: set KERAS_BACKEND=tensorflow; the model file may stay.")
    run = base.read_run(base.EMBEDDINGS_DIR)
    model = load_model(Path(base.EMBEDDINGS_DIR, MODEL_FILE), run.get("model"))
    inputs = {
        column: read_cells(frame, column, load_embedding(column, run)[1] if kind.dtype == "string" else None)
        for column, kind in model.input.items()
    }
    if not len(frame):
        return np.empty((0, *model.output_shape[1:]))
    rows = np.arange(len(frame))
    return base.in_pieces(lambda piece: model.predict_on_batch({column: cells[piece] for column, cells in inputs.items()}), rows)


def embed(frame):
    """Return the frame with each categorical column replaced by its vector as build_embeddings.py saved it.

    The columns of a vector of "dest" are dest_0, dest_1, ..., float32, behind the frame's other columns. A category
    without a row, or a missing cell where training had none, gets row 0. Raises base.InputError.
    """
    run, parts = base.read_run(base.EMBEDDINGS_DIR), [frame.drop(columns=CATEGORICAL_COLUMNS, errors="ignore")]
    for column in CATEGORICAL_COLUMNS:
        weights, vocabulary = load_embedding(column, run)
        vectors = weights[base.row_numbers(pd.Categorical(read_cells(frame, column, vocabulary)), vocabulary)]
        parts.append(pd.DataFrame(vectors, index=frame.index).add_prefix(f"{column}_"))
    return pd.concat(parts, axis=1)


if __name__ == "__main__":
    main()
