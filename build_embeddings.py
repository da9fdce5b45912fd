"""Learn a vector for every category of every categorical column of a table: entity embeddings.

    python build_embeddings.py

A network learns to predict TARGET_COLUMN from CATEGORICAL_COLUMNS alone. Each column has an
embedding layer: a matrix, one row a category, trained like any other weights. The script saves

    embeddings/<column>.npy    the matrix, float32; row 0 stands for all categories that are unknown
    embeddings/<column>.csv    the vocabulary: each row's category and its count in training rows
    embeddings/run.json        settings, checksums and test figures
    embeddings/look.js         the data that the page embeddings/look.html shows

build_embed_model.py loads these files, adds the numerical columns and trains again.
On the flights in data/ the categories alone predict the air time with an RMSE of 9.6 minutes on
test rows (predicting the mean: 93.6), after half a minute on two cores.

Source: Guo and Berkhahn, Entity Embeddings of Categorical Variables, 2016, arXiv:1604.06737.
"""

import bz2
import csv
import difflib
import glob
import gzip
import itertools
import json
import lzma
import os
import re
import shutil
import sys
import time
import unicodedata
import warnings
import zipfile
import zlib
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # less of TensorFlow's chatter
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # boosting's idle threads sleep

import keras
import numpy as np
import pandas as pd
from keras import layers, ops
from sklearn import decomposition, manifold, metrics

# --------------------------------------------------------------------------------------------------
# Edit this block for your own table.

# data
DATA_FILE = "data/flights.csv.gz"  # CSV, also .gz .bz2 .xz .zip; "data/part-*.csv" is one table
TARGET_COLUMN = "air_time"
TASK = "regression"  # or "binary", "multiclass"; class labels may be text
LOG_TARGET = False  # True: regression on log1p(target), for prices, sales and other long tails
CATEGORICAL_COLUMNS = ["month", "weekday", "hour", "carrier", "origin", "dest",
                       "tailnum", "model", "manufacturer", "engine"]
SPLIT_COLUMN = None  # None: random rows; dates: the latest are the test; names: each in one part
WEIGHT_COLUMN = None  # how many cases a row stands for: survey weights, exposure

# embeddings
MAX_EMBEDDING_DIM = 50  # the longest vector allowed; 8 is easier to look at and to reuse
EMBEDDINGS_DIR = "embeddings"

# training
EPOCHS = None  # None: by the number of rows, see choose_recipe; a number: exactly so many
BATCH_SIZE = None  # None: by the number of rows; larger is faster, and takes fewer steps
LEARNING_RATE = 5e-3  # lower it if training diverges
SEED = 0  # another seed: other random rows held out, other random starts
# --------------------------------------------------------------------------------------------------


def main():
    check_settings(globals())
    join_processes()
    folder = open_folder(EMBEDDINGS_DIR)
    data = load_rows(CATEGORICAL_COLUMNS, numerical_columns=[])  # training, validation, test rows
    keras.utils.set_random_seed(SEED)

    vocabularies = build_vocabularies(data.table, data.training)
    ids = to_ids(data.table, vocabularies)
    unknown = (ids.iloc[data.test] == 0).mean()  # of each column's test cells, the share
    print_sizes(vocabularies, unknown)

    with stage(f"Training on {len(vocabularies)} categorical columns"):
        recipe = choose_recipe(len(data.training), EPOCHS, rows_to_see=900_000)
        model = build_model(vocabularies, data, recipe)
        model, history = train(model, vocabularies, [ids], data, recipe, LEARNING_RATE)
    if PROCESS > 0:
        return  # where several machines train together, the first one reports and saves

    predictions = predict_rows(model, [ids], data.test)
    figures = score(data, predictions)
    print_test(figures)
    matrices = [model.get_layer(f"embedding_{i}").get_weights()[0] for i in range(ids.shape[1])]
    look = first_look(matrices, vocabularies, ids, data, history, predictions)
    print_nearest(look)
    run = {"rows": data.fingerprints, "target": data.target_info, "unknown": unknown.to_dict(),
           "validation_error": history["least"], "test": {ALONE: figures}}
    save_embeddings(folder, matrices, vocabularies, run, look)


# Categories


def build_vocabularies(table, training):
    """Return for each column a frame (category, count) of the categories in its training rows.

    Row 0 is the unknown category, trained by hiding random cells; then come the most frequent ones.
    """
    vocabularies = {}
    for column in table:
        counts = table[column].iloc[training].value_counts()
        counts.index = counts.index.astype(object)
        counts = counts[counts > 0].sort_index().sort_values(ascending=False, kind="stable")
        categories, counts = [UNKNOWN, *counts.index], [0, *counts]
        vocabularies[column] = pd.DataFrame({"category": categories, "count": counts})
    return vocabularies


def to_ids(table, vocabularies):
    """Return a frame of ids: the row of each category in its vocabulary, 0 where it has none.

    The columns leave the table. An empty cell is the category "".
    """
    ids = {}
    for column, vocabulary in vocabularies.items():
        known = table.pop(column).cat.set_categories(vocabulary["category"][1:])
        ids[column] = known.cat.codes + 1  # the code of a category that is not known is -1
    return pd.DataFrame(ids)


# The network

PRIOR = 40  # times a vector's length: the strength of its L2 penalty; higher: closer to zero
ACTIVATIONS = {"regression": "linear", "binary": "sigmoid", "multiclass": "softmax"}


def embedding(start, prior, data, name, trainable=True):
    """Return an embedding layer that starts from a matrix of vectors.

    The penalty, a Gaussian prior, keeps rare categories from overfitting. Its strength is prior
    over the number of training rows, as for a loss that is summed. A large matrix has none.
    """
    strength = prior / len(data.training)  # a penalty changes all rows in every step, see by_size
    penalty = None if is_large(start) else keras.regularizers.L2(strength)
    return layers.Embedding(*start.shape, weights=[start], embeddings_regularizer=penalty,
                            name=name, trainable=trainable)


def embedding_dim(cardinality):
    """Return the length of a vector: half the number of categories, from 2 to MAX_EMBEDDING_DIM."""
    return max(2, min(cardinality // 2, MAX_EMBEDDING_DIM))


def build_model(vocabularies, data, recipe):
    """Return the network: ids (rows, columns) -> vectors -> dense layers -> the target."""
    ids = keras.Input((len(vocabularies),), dtype="int32")
    rows = ops.maximum(ids, 0)  # a forgotten cell, -1, is of row 0, see hide_some
    random, vectors = generator("vectors"), []
    for i, vocabulary in enumerate(vocabularies.values()):
        shape = len(vocabulary), embedding_dim(len(vocabulary) - 1)
        start = random.uniform(-0.05, 0.05, shape)
        prior = PRIOR * shape[1]  # else neighbours mean less: tests/benchmarks/nearest.py
        vectors.append(embedding(start, prior, data, f"embedding_{i}")(rows[:, i]))
    return keras.Model([ids], ensemble(layers.concatenate(vectors), data, recipe))


def ensemble(features, data, recipe, effects=0.0, seen=1.0):
    """Return the predictions (rows, members), or (rows, members, classes), of an ensemble.

    Its members share the layers in the middle; each has scales of its own for the features, at
    random +1 or -1 at the start, and an output layer of its own. Each learns from every row, and
    the mean of their predictions is what counts (TabM: Gorishniy et al. 2024, arXiv:2410.24210).
    build_embed_model.py adds effects, (rows, 1, outputs), to the outputs, and hides from each
    member the features where seen, (members, features), is 0.
    """
    hidden = layers.RepeatVector(recipe.members)(features) * seen  # (rows, members, features)
    if recipe.members > 1:
        scales = layers.EinsumDense("rmf,mf->rmf", output_shape=hidden.shape[1:])
        hidden = scales(hidden)
        scales.set_weights([generator("signs").choice([-1.0, 1.0], scales.kernel.shape)])
    for units in recipe.widths:
        hidden = layers.Dense(units, activation="relu", kernel_initializer="he_normal")(hidden)
    shape = recipe.members, data.outputs
    outputs = layers.EinsumDense("rmf,mfo->rmo", output_shape=shape, bias_axes="mo")(hidden)
    predictions = layers.Activation(ACTIVATIONS[TASK])(outputs + effects)
    return predictions if data.outputs > 1 else ops.squeeze(predictions, 2)


# The loss


def gaussian_loss(target, predictions):
    """Return each row's squared error, divided by twice the batch's mean squared error.

    That divisor is taken for a constant, so that the gradient is that of the log of the RMSE: free
    of the target's unit, like that of cross-entropy, and one PRIOR suits both. It does not know
    the weights of rows, which Keras applies afterwards.
    """
    squares = ops.square(target - predictions)
    mean_square = ops.stop_gradient(ops.mean(squares)) + keras.config.epsilon()
    return ops.mean(squares, axis=1) / (2 * mean_square)


# Functions of target (rows, members) and predictions (rows, members), or (rows, members, classes),
# that return losses. For your own, also adapt row_errors, by which the epoch is chosen, and scale
# PRIOR, in both scripts, with the loss.
LOSSES = {
    "regression": gaussian_loss,
    "binary": keras.losses.binary_crossentropy,
    "multiclass": keras.losses.sparse_categorical_crossentropy,
}


# Training


def train(model, vocabularies, inputs, data, recipe, learning_rate, averaged=1):
    """Return the model with the weights of its best epoch, or of several, and its history.

    At first the learning rate is steady, and each epoch ends at an average of its weights; later
    the rate falls to zero. After each epoch the error on validation rows is measured: the least one
    chooses the best epoch. Unless EPOCHS is set, adapt_recipe ends training early where epochs no
    longer pay, or doubles them where they pay well. averaged: of how many of the best epochs the
    weights may be averaged, see average_epochs. inputs: frames of all rows, the ids first. Raises
    InputError where training diverges.
    """
    compile_model(model, recipe, len(data.training))
    validation = sample(data.validation, 200_000)
    random, show = generator("epochs"), progress(data.target_info)
    errors, best = [], []

    def measure():
        return mean_error(data, validation, predict_rows(model, inputs, validation))

    while len(errors) < recipe.steady_epochs + recipe.falling_epochs:
        number = len(errors) + 1
        fit_epoch(model, vocabularies, inputs, data, recipe, random, learning_rate, number)
        errors.append(measure())
        if not np.isfinite(errors[-1]):
            raise InputError("Training diverged: lower LEARNING_RATE, or look for extreme values.")
        # Early in the fall a low error is luck: the rate is high, and weights are no average
        is_lucky = 0 < recipe.steady_epochs < number <= half_way(recipe)
        if not is_lucky:
            best = sorted([*best, Epoch(errors[-1], number, model.get_weights())])
            best = best[: averaged if recipe.steady_epochs else 1]  # a large table: less memory
        show(recipe, errors, best[0].error)
        recipe = adapt_recipe(recipe, errors)
    kept, least = average_epochs(model, best, measure)
    print_kept(kept, least, data.target_info)
    return finished(model), {"errors": errors, "kept": kept, "least": least}


# --------------------------------------------------------------------------------------------------
# What stands below serves both scripts: first how long training is and how wide the layers are.
# --------------------------------------------------------------------------------------------------


# The recipe

Recipe = namedtuple("Recipe", "batch_size members widths weight_decay "
                              "steady_epochs falling_epochs most_epochs")


def choose_recipe(row_count, epochs, rows_to_see):
    """Return how to train on so many rows, as measured in tests/benchmarks.

    Small tables overfit: they get many members of a small network, and some epochs at a steady
    learning rate before those in which it falls to zero. Falling epochs are fewer where the network
    would see more than rows_to_see rows, but three at least. If the user sets epochs, all fall.
    most_epochs is how many adapt_recipe may make of them.
    """
    # up to so many rows: batch size, members, widths, weight decay, steady and falling epochs
    recipes = {
        2_500: (32, 16, (256, 128), 0.20, 24, 48),
        5_000: (64, 16, (256, 128), 0.20, 24, 48),
        10_000: (128, 8, (256, 128), 0.20, 16, 32),
        20_000: (256, 4, (256, 128), 0.15, 12, 24),
        50_000: (512, 2, (512, 256), 0.07, 12, 24),
        100_000: (512, 2, (512, 256), 0.05, 16, 32),
        3_000_000: (512, 1, (512, 256), 0.05, 0, 30),
        12_000_000: (2048, 1, (512, 256), 0.05, 0, 30),
        np.inf: (8192, 1, (512, 256), 0.05, 0, 30),
    }
    batch_size, *network, steady, falling = next(
        recipes[limit] for limit in recipes if row_count <= limit)
    falling = min(falling, max(3, rows_to_see // row_count))
    steady, falling = (0, epochs) if epochs else (steady, falling)
    most = epochs or (288 if steady else 2 * falling)
    return Recipe(BATCH_SIZE or batch_size, *network, steady, falling, most)


def adapt_recipe(recipe, errors):
    """Return the recipe for the epochs to come, from the errors of those so far.

    A gain is the share by which the later half of some epochs (of steady ones at least four)
    lowered their least error. A noisy table would only be learned by heart: training ends after a
    steady epoch where the gain of all so far is below 0.2 %, or, after steady epochs, half way down
    the fall where that of the falling epochs alone is below -0.5 %. An exact table gains for long:
    all epochs are doubled where the gain of the steady ones is above 30 %, or, where none is
    steady, the gain half way down the fall is above 2 %.
    """
    epoch, steady, falling = len(errors), recipe.steady_epochs, recipe.falling_epochs
    ends = doubles = False
    if epoch <= steady:
        gain = gain_of(errors, max(4, epoch // 2))
        ends, doubles = gain < 0.002, gain > 0.3 and epoch == steady
    elif 1 < epoch == half_way(recipe):
        gain = gain_of(errors[steady:], (epoch - steady) // 2)
        ends, doubles = steady and gain < -0.005, not steady and gain > 0.02
    if ends:
        return recipe._replace(steady_epochs=epoch, falling_epochs=0)
    if doubles and 2 * (steady + falling) <= recipe.most_epochs:
        return recipe._replace(steady_epochs=2 * steady, falling_epochs=2 * falling)
    return recipe


def gain_of(errors, later):
    """Return by what share the later ones of some errors lowered the least error."""
    least = min(errors[:-later], default=np.inf)
    return 1 - min(errors[-later:]) / least if least else 0.0


def half_way(recipe):
    """Return the epoch in which half of the fall is over."""
    return recipe.steady_epochs + recipe.falling_epochs // 2


# The optimizer, also of large tables


def compile_model(model, recipe, row_count):
    """Compile with AdamW; large embedding matrices have SGD, see by_size.

    Where there are steady epochs, fit ends each at a moving average of the weights, of which half
    is from before the epoch. That lowers the error as a smaller rate would (Zhang et al. 2019,
    arXiv:1907.08610).
    """
    check_devices(recipe.batch_size)
    steps = -(-row_count // recipe.batch_size)
    adamw = keras.optimizers.AdamW(
        weight_decay=recipe.weight_decay, use_ema=recipe.steady_epochs > 0,
        ema_momentum=np.exp(-0.7 / steps))  # exp(-0.7) is a half
    adamw.exclude_from_weight_decay(var_names=["bias", "embeddings"])
    optimizer = by_size(adamw, model)
    model.compile(optimizer, LOSSES[TASK], **execution())
    optimizer.build(model.trainable_variables)  # else TensorFlow would trace the first step twice


def rate_factors(epoch, recipe, row_count):
    """Return what the learning rate is multiplied by in each piece of an epoch.

    A steady epoch is one piece, at whose end its weights are averaged. Later the rate falls along
    half a cosine (Loshchilov and Hutter 2016, arXiv:1608.03983). Of few epochs each has many
    pieces, and a piece has not much more than a million rows.
    """
    if epoch <= recipe.steady_epochs:
        return np.ones(1)
    pieces = max(1, 24 // recipe.falling_epochs, row_count // 1_000_000)
    pieces = min(pieces, -(-row_count // recipe.batch_size))
    passed = epoch - recipe.steady_epochs - 1 + (np.arange(pieces) + 0.5) / pieces
    passed = passed / recipe.falling_epochs
    return (1 + np.cos(np.pi * passed)) / 2


LARGE = 500_000  # numbers in a matrix


def is_large(matrix):
    """Return whether AdamW, which changes a whole matrix in every step, is too slow for it.

    With a million categories it takes twenty times as long as SGD, which on TensorFlow changes the
    rows of a batch alone. Keras mixes optimizers from 3.15 on; before, all matrices have AdamW.
    """
    can_mix = tf is not None and hasattr(keras.optimizers, "MultiOptimizer")
    return can_mix and np.prod(matrix.shape) >= LARGE


def by_size(adamw, model):
    """Return SGD for the large embedding matrices of a model and AdamW for the rest, as one."""
    sgd = keras.optimizers.SGD()

    def choose(variable):
        return sgd if "embedding_" in variable.path and is_large(variable) else adamw

    if all(choose(variable) is adamw for variable in model.trainable_variables):
        return adamw
    return keras.optimizers.MultiOptimizer(choose)


def set_rate(optimizer, rate, batch_size, averaged):
    """Set the learning rate, and whether fit ends at an average of the weights.

    The loss is a mean over the batch; SGD's rate times the batch size makes it a sum, so that a
    vector moves by the rate for each occurrence of its category.
    """
    for each in getattr(optimizer, "optimizers", [optimizer]):  # what by_size made it of
        is_sgd = isinstance(each, keras.optimizers.SGD)
        each.learning_rate = float(rate * batch_size if is_sgd else rate)
        each.use_ema = averaged and not is_sgd


def execution():
    """Return how compile should run a step: sixteen at a time, by XLA where it works.

    XLA halves the time of a step, but a Mac or a GPU's set-up may lack parts of it.
    """
    if not tf:
        return {"steps_per_execution": 1 if keras.backend.backend() == "torch" else 16}
    try:
        probe = tf.function(lambda x: tf.argsort(tf.math.log(x) + 0.9**x), jit_compile=True)
        probe(tf.ones(2))
    except (tf.errors.OpError, ValueError):
        return {"steps_per_execution": 16, "jit_compile": False}
    return {"steps_per_execution": 16, "jit_compile": True}


# Mistakes


class InputError(ValueError):
    """A mistake in the table, the settings or the saved files, in a sentence with its remedy."""


def is_name(value):
    return isinstance(value, str) and value != ""


def is_list(value):
    return isinstance(value, list) and all(map(is_name, value))


def is_whole(value, least=1):
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


# Settings, what each must be, and whether it is
RULES = [
    ("DATA_FILE TARGET_COLUMN EMBEDDINGS_DIR", "one name in quotes", is_name),
    ("SPLIT_COLUMN WEIGHT_COLUMN", "None or one name in quotes",
     lambda value: value is None or is_name(value)),
    ("CATEGORICAL_COLUMNS", 'a list of names, not empty, as in ["dest", "month"]',
     lambda value: is_list(value) and value),
    ("NUMERICAL_COLUMNS", "a list of names, [] for none", is_list),
    ("TASK", "'regression', 'binary' or 'multiclass'", lambda value: value in list(LOSSES)),
    ("LOG_TARGET TRAIN_EMBEDDINGS", "True or False", lambda value: isinstance(value, bool)),
    ("MAX_EMBEDDING_DIM", "a whole number, 2 or more", lambda value: is_whole(value, least=2)),
    ("EPOCHS BATCH_SIZE", "None or a whole number, 1 or more",
     lambda value: value is None or is_whole(value)),
    ("LEARNING_RATE", "a number above 0",
     lambda value: isinstance(value, (int, float)) and value > 0),
    ("SEED", "a whole number from 0 to 4294967295",
     lambda value: is_whole(value, least=0) and value < 2**32),
]


def check_settings(settings):
    """Raise InputError where a setting of a script's edit block is not what it must be."""
    for names, wanted, is_right in RULES:
        for name in names.split():
            if name in settings and not is_right(settings[name]):
                raise InputError(f"{name} is {settings[name]!r}; it must be {wanted}.")


# The rows

Settings = namedtuple("Settings", "target_column task log_target split_column weight_column seed")
Data = namedtuple("Data", "table target target_info outputs weights centres training validation "
                          "test groups fingerprints")


def load_rows(categorical_columns, numerical_columns):
    """Return the table, its target as the network learns it, and the row numbers of its parts.

    Both scripts call this, and so train and test on the same rows. target_info turns predictions
    back into the target's units, outputs is how many numbers the network predicts for a row,
    weights has mean 1 on the training rows, centres is what was taken off columns too exact for
    float32, and fingerprints tell these rows from others.
    """
    settings = Settings(TARGET_COLUMN, TASK, LOG_TARGET, SPLIT_COLUMN, WEIGHT_COLUMN, SEED)
    check_columns(categorical_columns, numerical_columns)
    texts = dict.fromkeys(categorical_columns, "CATEGORICAL_COLUMNS")
    numbers = dict.fromkeys(numerical_columns, "NUMERICAL_COLUMNS in build_embed_model.py")
    (numbers if TASK == "regression" else texts)[TARGET_COLUMN] = "TARGET_COLUMN"
    if WEIGHT_COLUMN:
        numbers.setdefault(WEIGHT_COLUMN, "WEIGHT_COLUMN")
    if SPLIT_COLUMN:
        texts.setdefault(SPLIT_COLUMN, "SPLIT_COLUMN")
    with stage(f"Reading {DATA_FILE}"):
        texts, numbers = read_table(texts, numbers)
        target = (numbers if TASK == "regression" else texts)[TARGET_COLUMN]
        part = split(len(target), texts.get(SPLIT_COLUMN))
        parts = [np.flatnonzero(part == which).astype("int32") for which in range(3)]
        weights = read_weights(numbers.get(WEIGHT_COLUMN), parts, len(target))
        fingerprints = {"settings": [*settings], "split": fingerprint(part)}
        for column in filter(None, [*categorical_columns, TARGET_COLUMN, WEIGHT_COLUMN]):
            cells = numbers[column] if column in numbers else texts[column]
            fingerprints[f"cells of {column}"] = fingerprint(cells)
        target, target_info = encode_target(target, parts, weights)
        centres = centre(numbers, numerical_columns, parts[TRAINING])
        sizes = "{:,} train, {:,} validation, {:,} test".format(*map(len, parts))
        print(f"  {len(target):,} rows: {sizes}")
        groups = None
        if SPLIT_COLUMN:
            print_parts(texts[SPLIT_COLUMN], part)
            groups = texts[SPLIT_COLUMN].codes[parts[TEST]]
    table = pd.DataFrame({column: texts[column] for column in categorical_columns}
                         | {column: numbers[column] for column in numerical_columns}, copy=False)
    outputs = len(target_info["classes"]) if TASK == "multiclass" else 1
    return Data(table, target, target_info, outputs, weights, centres, *parts, groups, fingerprints)


def check_columns(categorical_columns, numerical_columns):
    """Raise InputError where a column is named in two places that exclude each other."""
    columns = [*categorical_columns, *numerical_columns]
    twice = [column for column in columns if columns.count(column) > 1]
    if twice:
        raise InputError(f"Column {twice[:1]} is listed twice: leave it in one place of one list.")
    if TARGET_COLUMN in [*columns, SPLIT_COLUMN, WEIGHT_COLUMN]:
        raise InputError(f"TARGET_COLUMN {TARGET_COLUMN!r} must not be an input as well: "
                         "take it off the lists.")


# Reading the file

MISSING_NUMBERS = ["", "NA", "NaN", "nan"]  # in numerical columns; elsewhere they are text


def check_header(header, columns, file):
    """Raise InputError where one of the columns, {name: its setting}, is not once in a header."""
    if len(header) < 2:
        text = "".join(header)
        found = "semicolons" if ";" in text else "tabs" if "\t" in text else "one name"
        raise InputError(f"{file} is empty, or its header has no commas between names "
                         f"(found: {found}).")
    folded = {name.casefold(): name for name in header}
    for column, setting in columns.items():
        if column not in header:
            closest = difflib.get_close_matches(column.casefold(), folded, n=1)
            closest = f"; the closest is {folded[closest[0]]!r}" if closest else ""
            raise InputError(f"{file} has no column {column!r}, which {setting} names{closest}.")
        if header.count(column) > 1:
            raise InputError(f"{file}: {header.count(column)} columns are called {column!r}; "
                             "rename all but one.")


def read_lines(file):
    """Yield the line on which each row of a CSV file begins and its cells, the header's first."""
    csv.field_size_limit(2**31 - 1)  # its own limit refuses a cell of 128 KB
    kinds = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zip": open_zip}
    open_file = kinds.get(Path(file).suffix, open)
    line, header = 1, None
    try:
        with open_file(file, "rt", encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            for cells in reader:
                if cells and header and len(cells) != len(header):  # pandas would add empty cells
                    raise InputError(f"{file}, line {line}: {len(cells)} cells, but the header has "
                                     f"{len(header)}; put quotes around a cell that holds a comma.")
                if cells and cells == header:
                    raise InputError(f"{file}, line {line}: the header once more; remove the line.")
                header = header or cells
                if cells:
                    yield line, cells
                line = reader.line_num + 1
    except (csv.Error, OSError, EOFError, UnicodeError, lzma.LZMAError, zipfile.BadZipFile,
            zlib.error, RuntimeError) as error:  # the last one: a zip with a password
        raise InputError(f"{file}, line {line}, or near it: not readable ({error}); "
                         "save it as CSV in UTF-8, or download it again.") from error


def open_zip(file, mode, **settings):
    """Open the one file in a zip archive as text."""
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    if len(names) != 1:
        raise InputError(f"{file} holds {len(names)} files: leave one, the table.")
    return zipfile.Path(archive, names[0]).open("r", **settings)


def here(name):
    """Return the path of a file that the edit block names, from the scripts' folder on."""
    path = Path(__file__).parent / Path(name).expanduser()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def read_chunks(columns):
    """Yield 256 rows at a time: the file, the lines on which they begin, the columns' cells.

    columns: {name: the setting that names it}.
    """
    path = str(here(DATA_FILE))
    files = [path] if os.path.isfile(path) else sorted(glob.glob(path, recursive=True))
    if not files:
        raise InputError(f"No file {path}: correct DATA_FILE in build_embeddings.py.")
    for file in files:
        rows = read_lines(file)
        _, header = next(rows, (1, []))
        check_header(header, columns, file)
        places = {column: header.index(column) for column in columns}
        while chunk := list(itertools.islice(rows, 256)):  # more would leave the processor's cache
            lines, cells = zip(*chunk)
            cells = list(zip(*cells))
            yield file, lines, {column: cells[place] for column, place in places.items()}


def to_numbers(cells):
    """Return cells as float64: NaN where missing, infinite where they are no number of float32."""
    try:
        text = "".join(cells)
        if "_" in text or not text.isascii():
            raise ValueError("Python would read 1_000 and the digits of every script")
        numbers = np.array(cells, object).astype("float64")
    except (TypeError, ValueError):
        numbers = pd.to_numeric(np.array(cells, object), errors="coerce").astype("float64")
    for row in np.flatnonzero(~(np.abs(numbers) <= np.finfo("float32").max)):
        numbers[row] = np.nan if str(cells[row]).strip() in MISSING_NUMBERS else np.inf
    return numbers


def checked_numbers(cells, column, file, lines):
    """Return cells as float64; raises InputError where one is no number."""
    numbers = to_numbers(cells)
    for row in np.flatnonzero(np.isinf(numbers)):
        raise InputError(f"{file}, line {lines[row]}: column {column!r} holds {cells[row][:50]!r}, "
                         "which is no number like 1234.5; leave it empty if it is missing, list "
                         "the column as categorical if it holds names, or set TASK if it is the "
                         "target.")
    return numbers


def read_table(text_columns, number_columns):
    """Return columns of the table in two dicts: Categoricals, and numbers, the target as float64.

    Text becomes codes chunk by chunk, so that it is never in memory as a whole. Numbers are float32
    where that can tell them apart, else float64. The columns: {name: the setting that names it}.
    """
    codes = {column: {} for column in text_columns}  # text -> code, in the order of appearance
    texts = {column: [] for column in text_columns}
    numbers = {column: [] for column in number_columns}
    pending = {column: [] for column in number_columns}
    missing = MISSING_NUMBERS if TARGET_COLUMN in number_columns else [""]
    row_count, without_target, first_without = 0, 0, None
    for file, lines, cells in read_chunks(text_columns | number_columns):
        for column, code in codes.items():
            found = [code.setdefault(cell, len(code)) for cell in cells[column]]
            texts[column].append(np.array(found, "int32"))
        for column in number_columns:
            pending[column].append(checked_numbers(cells[column], column, file, lines))
            if len(pending[column]) == 256:
                numbers[column].append(compact(pending[column], column == TARGET_COLUMN))
                pending[column] = []
        row_count += len(lines)
        places = [line for line, cell in zip(lines, cells[TARGET_COLUMN])
                  if cell.strip() in missing]
        if places:
            first_without = first_without or f"{file}, line {places[0]}"
            without_target += len(places)
    if row_count < 20:
        raise InputError(f"{DATA_FILE} has {row_count} rows below its header; "
                         "20 are the fewest that can be split in three.")
    if without_target:
        raise InputError(f"{first_without}: no {TARGET_COLUMN!r}, as in {without_target:,} rows in "
                         "all; remove these rows.")
    for column, code in codes.items():
        categories = pd.Index(list(code), dtype=object)
        texts[column] = pd.Categorical.from_codes(np.concatenate(texts[column]), categories)
    for column, chunks in numbers.items():
        numbers[column] = compact([*chunks, *pending[column]], column == TARGET_COLUMN)
    return texts, numbers


def compact(chunks, exact):
    """Return chunks of numbers as one array: float64 if exact, else float32 if it does not blur.

    To blur is to move a tenth of the numbers by more than a ten-thousandth of their quartiles'
    distance, or of their range where that is 0.
    """
    numbers = np.concatenate(chunks)
    if exact or numbers.dtype == "float32":
        return numbers
    known = numbers[~np.isnan(numbers)]
    if len(known):
        low, high = np.quantile(known, [0.25, 0.75])
        blur = np.quantile(np.abs(known - known.astype("float32")), 0.9)
        if blur > 1e-4 * (high - low or np.ptp(known)):
            return numbers
    return numbers.astype("float32")


def centre(numbers, columns, training):
    """Take the medians off columns too exact for float32, such as milliseconds; return them."""
    centres = {}
    for column in columns:
        if numbers[column].dtype == "float64":
            centres[column] = float(np.nanmedian(numbers[column][training]))
            numbers[column] = (numbers[column] - centres[column]).astype("float32")
    return centres


def read_weights(weights, parts, row_count):
    """Return the weight of each row, mean 1 on the training rows; without WEIGHT_COLUMN all 1."""
    if weights is None:
        return np.ones(row_count, "float32")
    wrong = ~(weights > 0)
    if wrong.any():
        raise InputError(f"WEIGHT_COLUMN {WEIGHT_COLUMN!r} needs a number above 0 in each row, but "
                         f"has {weights[wrong][0]:g} (nan: missing) in {wrong.sum():,}: remove "
                         "these rows.")
    return (weights / weights[parts[TRAINING]].mean(dtype="float64")).astype("float32")


# The split

TRAINING, VALIDATION, TEST = 0, 1, 2
PARTS = {"train": TRAINING, "training": TRAINING, "validation": VALIDATION, "valid": VALIDATION,
         "val": VALIDATION, "dev": VALIDATION, "test": TEST}  # what SPLIT_COLUMN may say


def split_rows(row_count, order=None):
    """Return the part of every row, int8, for code of your own: TRAINING, VALIDATION or TEST.

    Random rows, 80, 10 and 10 %. With SPLIT_COLUMN order is the text of that column. The largest
    numbers or dates are the test, those before them the validation; of names each has its rows in
    one part; train, validation and test are what they say. Raises InputError; warns where the saved
    run was of another split.
    """
    part, run = split(row_count, order), read_run(here(EMBEDDINGS_DIR))
    if run and run["rows"]["split"] != fingerprint(part):
        warnings.warn(f"{EMBEDDINGS_DIR}/ was learned from other rows than these, or with another "
                      "SEED or SPLIT_COLUMN: it has seen test rows.", stacklevel=2)
    return part


def split(row_count, order):
    """Return the part of every row, int8, as split_rows says it."""
    tenth, random = row_count // 10, np.random.default_rng(SEED)
    sizes = [row_count - 2 * tenth, tenth, tenth]
    if not SPLIT_COLUMN:
        part = np.repeat(np.array([TRAINING, VALIDATION, TEST], "int8"), sizes)
        return random.permutation(part)
    order = pd.Categorical([] if order is None else order).remove_unused_categories()
    if len(order) != row_count or (order.codes < 0).any():
        raise InputError(f"split_rows needs the text of SPLIT_COLUMN {SPLIT_COLUMN!r} in each of "
                         f"the {row_count:,} rows: read the file with dtype=str, "
                         "keep_default_na=False.")
    texts = pd.Series(order.categories).astype(str)
    words = texts.str.strip().str.lower().map(PARTS)
    if words.notna().all():
        part = words.to_numpy("int8")[order.codes]
        if VALIDATION not in part:
            training = np.flatnonzero(part == TRAINING)
            part[random.choice(training, len(training) // 10, replace=False)] = VALIDATION
        least = 1
    else:
        rank = rank_texts(texts)
        if rank is None:  # names, in random order
            rank = random.permutation(len(texts))[np.argsort(np.argsort(texts.to_numpy(object)))]
        rank = rank[order.codes]
        first_held_out = np.sort(rank)[np.cumsum(sizes[:2])]
        part = np.searchsorted(first_held_out, rank, side="right").astype("int8")
        least = row_count / 2
    sizes = np.bincount(part, minlength=3)
    if sizes.min() < 2 or sizes[TRAINING] < least:
        raise InputError(f"SPLIT_COLUMN {SPLIT_COLUMN!r} has too few values, or too many rows of "
                         "one, to hold out two tenths.")
    return part


# What may be a time and does not sort as one: 3.4.2024, 04/24, 12:30, 2024-Q1, 1Q24, FY24,
# 3 Apr 2024, 03APR2024, 2023/2024, 2023/24, H1 2024, Week 12, Spring 2024
TIME = (r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}( .*)?|\d{1,2}[./-]\d{2,4}|\d{1,2}:\d\d.*"
        r"|(fy ?)?\d{2,4}[ ./_-]?[qw]\d{1,2}(-[1-7])?|[qw]\d{1,2}[ ./_'-]{0,2}\d{2,4}"
        r"|([12] ?h|[1-4] ?q)[ /'-]{0,2}\d{2,4}|fy ?\d{2,4}([/-]\d{2,4})?"
        r"|(19|20)\d\d[/_-](19|20)?\d\d|(19|20)\d\d[ -]?[hms]\d{1,2}|[hs][12][ /-]?(19|20)\d\d"
        r"|(week|day|spring|summer|autumn|fall|winter)[ _]?\d+.*"
        r"|(?=.*\d).*(?<![a-z])(jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?"
        r"|sep(t|tember)?|oct(ober)?|nov(ember)?|dec(ember)?)"
        r"(?![a-z]|[ _-]?(0\d\d|\d{3}(?!\d))).*")  # MAR001 is a shop
# All of them numbers: 12.2024, 122024, 12024, 3042024, 03042024, or 2024.1 to 2024.12
DATE_NUMBER = r"(\d{1,2}\.|0?[1-9]|1[0-2]|[0-3]?\d[01]\d)(19|20)\d\d"
YEAR_MONTH = r"(19|20)\d\d\.([1-9]|1[0-2])"
YEAR_FIRST = r"(19|20)\d\d(0[1-9]|1[0-2])([0-3]\d)?"


def rank_texts(texts):
    """Return the rank of each text by its value, a number or an ISO date; None if all are names."""
    texts = texts.str.strip()
    numbers = pd.to_numeric(texts, errors="coerce")
    dates = pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True)
    values = numbers if numbers.notna().all() else dates
    wrong, words = values.isna(), texts.str.lower().map(PARTS)
    parts = {*words.dropna()}
    if words.notna().mean() >= 0.5 or (TRAINING in parts and len(parts) > 1 and len(texts) < 20):
        wrong = words.isna()  # parts are meant, and the others are none
    elif numbers.isna().all() and dates.isna().all() and texts.all():
        wrong = texts.str.lower().str.fullmatch(TIME)
        if wrong.mean() < 0.5:  # of names, a few may look like a time
            return None
    elif texts.str.fullmatch(DATE_NUMBER).all():
        wrong = ~texts.str.fullmatch(YEAR_FIRST)
    elif texts.str.fullmatch(YEAR_MONTH).all():
        two_digits = texts.str.len() == 7  # as numbers .10 to .12 come before .2
        wrong = two_digits & ~two_digits.all()
    if wrong.any():
        raise InputError(f"SPLIT_COLUMN {SPLIT_COLUMN!r} needs numbers, dates like 2026-01-31, "
                         "names, or train, validation and test, none missing, but has "
                         f"{texts[wrong].iloc[0][:50]!r}; put a letter before ids.")
    return values.rank(method="dense").to_numpy("int64")


def print_parts(order, part):
    """Print which values of SPLIT_COLUMN are in each part."""
    texts = pd.Series(order.categories).astype(str)
    is_word = texts.str.strip().str.lower().isin(PARTS).all()
    rank = None if is_word else rank_texts(texts)
    shown = []
    for which, name in enumerate(["train", "validation", "test"]):
        codes = np.unique(order.codes[part == which])
        if rank is None:
            shown.append(f"{len(codes):,} in {name}")
        else:
            ends = codes[[rank[codes].argmin(), rank[codes].argmax()]]
            shown.append(f"{name} {' to '.join(texts[ends])}")
    kind = " (names, in random order)" if rank is None and not is_word else ""
    print(f"  by {SPLIT_COLUMN}{kind}: {', '.join(shown)}")


# The target


def encode_target(target, parts, weights):
    """Return the target as the network learns it, and a dict of what turns predictions back.

    Regression: float32, mean 0 and standard deviation 1 on the training rows; of training and
    validation rows, extreme values are taken for the largest or smallest other one. Classes: int32
    positions in "classes", sorted as text; a binary network predicts the probability of the second.
    """
    training, _, test = parts
    if TASK != "regression":
        return encode_classes(target, training, test)
    if LOG_TARGET and target.min() <= -1:
        raise InputError(f"LOG_TARGET needs values above -1, but {TARGET_COLUMN!r} has "
                         f"{target.min():g}.")
    if target.min() < target.max() and np.isin(target, [target.min(), target.max()]).all():
        print(f"  {TARGET_COLUMN} has two values: TASK = 'binary' if they are classes")
    if LOG_TARGET and target.max() < 0.5:
        print(f"  LOG_TARGET does little: {TARGET_COLUMN} has no value above 0.5, where log1p "
              "hardly bends; multiply it, say by 1000.")
    values = np.log1p(target) if LOG_TARGET else target
    low, high = np.quantile(values[training], [0.01, 0.99])  # between them are 98 %
    learned, extreme = values.copy(), np.abs(values - low) > (100 * (high - low) or np.inf)
    if extreme.any():
        print_extremes(target[extreme])
        usual = values[training][~extreme[training]]
        learned[extreme] = values[extreme].clip(usual.min(), usual.max())
    mean = float(np.average(learned[training], weights=weights[training]))
    spread = np.average((learned[training] - mean) ** 2, weights=weights[training])
    std = float(spread**0.5)
    if std <= 1e-12 * abs(mean):
        raise InputError(f"TARGET_COLUMN {TARGET_COLUMN!r} has one value in all training rows: "
                         "there is nothing to learn.")
    learned[test] = values[test]  # the report is on what the file says
    info = {"mean": mean, "std": std, "log": LOG_TARGET}
    return ((learned - mean) / std).astype("float32"), info


def print_extremes(extremes):
    """Print the extreme values of the target and where they stand in the file."""
    places = []
    for file, lines, cells in read_chunks({TARGET_COLUMN: "TARGET_COLUMN"}):
        found = np.flatnonzero(np.isin(to_numbers(cells[TARGET_COLUMN]), extremes))
        places += [f"{cells[TARGET_COLUMN][row]} ({file}, line {lines[row]})" for row in found]
    more = f" and {len(places) - 4:,} more" if len(places) > 4 else ""
    print(f"  {TARGET_COLUMN} has extreme values, which training takes for the next usual one: "
          f"{', '.join(places[:4])}{more}. Correct them if they are mistakes, else try LOG_TARGET.")


def encode_classes(target, training, test):
    """Return the positions of the target's classes, and the classes, as encode_target says it."""
    classes = sorted(target[training].unique())
    if len(classes) < 2 or (TASK == "binary" and len(classes) > 2):
        wanted = "two" if TASK == "binary" else "two or more"
        raise InputError(f"TARGET_COLUMN {TARGET_COLUMN!r} has {len(classes)} classes in the "
                         f"training rows ({', '.join(map(repr, classes))[:80]}); TASK {TASK!r} "
                         f"needs {wanted}.")
    labels = target.set_categories(classes).codes.astype("int32")
    if (labels < 0).any():
        lost = ", ".join(map(repr, target[labels < 0].unique()))
        raise InputError(f"Of {TARGET_COLUMN!r} these classes are in no training row: "
                         f"{lost[:300]}; remove their rows or join them to others.")
    odd = [label for label in classes if fold(label) in ("na", "n/a", "nan", "null", "none", "?")]
    odd += itertools.chain(*alike(classes))
    if odd:
        odd = ", ".join(map(repr, odd))
        print(f"  classes of {TARGET_COLUMN} that look missing or double: {odd[:300]}")
    for_test = set(range(len(classes))) - {*labels[test]}
    if for_test:
        lost = ", ".join(repr(classes[label]) for label in sorted(for_test))
        print(f"  no test row has the class {lost[:300]}, so that the report says nothing of it"
              + (" and has no AUC" if TASK == "binary" else ""))
    return labels, {"classes": classes}


def fold(text):
    """Return a text without what people hardly mean: blanks, case, forms of Unicode, 5.0 for 5."""
    text = unicodedata.normalize("NFC", text).strip().casefold()
    return re.sub(r"^([+-]?\d+)\.0*$", r"\1", text) if text[-1:] in ("0", ".") else text


def alike(texts):
    """Return lists of those texts that are equal once they are folded."""
    groups = {}
    for text in texts:
        groups.setdefault(fold(text), []).append(text)
    return [group for group in groups.values() if len(group) > 1]


# Feeding batches

tf = None
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf  # for datasets, XLA on the processor, and large matrices


def generator(purpose):
    """Return a generator of random numbers for one purpose: no two purposes share a stream."""
    return np.random.default_rng([SEED, *purpose.encode()])


def sample(rows, limit):
    """Return the rows, or as many of them at random as the limit allows."""
    if len(rows) <= limit:
        return rows
    return generator("sample").choice(rows, limit, replace=False)


def full_batches(rows, size):
    """Return rows as batches (steps, size), the last filled up: XLA compiles for each length."""
    return np.resize(rows, (-(-len(rows) // size), size))


def rows_at_once(model):
    """Return how many rows a model can see at once: each column is many numbers inside it."""
    columns = sum(int(np.prod(tensor.shape[1:])) for tensor in [*model.inputs, *model.outputs])
    return min(8192, 16 + 2**16 // columns)


def gather(frames, batches):
    """Return copies of some rows: (steps, batch, columns) of each frame; batches: row numbers."""
    rows = batches.ravel()
    return [np.array(frame.iloc[rows]).reshape(*batches.shape, -1) for frame in frames]


def feed(inputs, data, batches, members):
    """Return inputs (steps, batch, ...) and target as the keyword arguments of fit."""
    size = batches.shape[1] // PROCESSES
    own = slice(PROCESS * size, (PROCESS + 1) * size)  # this process's part of each batch
    inputs, batches = [each[:, own] for each in inputs], batches[:, own]
    targets = np.repeat(data.target[batches][:, :, None], members, axis=2)
    weights = data.weights[batches][:, :, None]
    if not tf:
        *inputs, targets, weights = map(np.concatenate, [*inputs, targets, weights])
        return {"x": inputs, "y": targets, "sample_weight": weights, "batch_size": size}
    options = tf.data.Options()
    options.autotune.enabled = False  # TensorFlow 2.21 would wait for the tuner at each end of fit
    with tf.device("CPU"):  # where datasets work, whatever trains
        rows = tf.data.Dataset.from_tensor_slices((tuple(inputs), targets, weights))
    return {"x": rows.with_options(options)}


def fit_epoch(model, vocabularies, inputs, data, recipe, random, learning_rate, epoch):
    """Let the model learn from every training row once, in random order.

    Rows are gathered in as many pieces as there are rates, which saves memory on large tables.
    Some cells are shown as row 0, others in each epoch, see hide_some.
    """
    rates = learning_rate * rate_factors(epoch, recipe, len(data.training))
    order = full_batches(random.permutation(data.training), recipe.batch_size)
    for number, batches in enumerate(np.array_split(order, len(rates))):
        ids, *others = gather(inputs, batches)
        hide_some(ids, vocabularies, random)
        rows = feed([ids, *others], data, batches, recipe.members)
        set_rate(model.optimizer, rates[number], recipe.batch_size, epoch <= recipe.steady_epochs)
        model.fit(**rows, shuffle=False, verbose=0)
        if order.size > 2_000_000:
            print(f"  {number + 1} of {len(rates)} pieces of the epoch", flush=True)


FORGOTTEN = 0.01  # of all cells, the share; more: better for unknown categories, worse for others


def hide_some(ids, vocabularies, random):
    """Replace some categories by row 0, so that its vector learns to stand for an unknown one.

    The rarer a category the more often, so that it is not learned by heart: one of a single row in
    half of the epochs. One cell in a hundred is forgotten altogether: it becomes -1, which is row 0
    too, but has no mean target in build_embed_model.py, as an unknown category has none.
    ids: (steps, batch, columns), changed in place.
    """
    for column, vocabulary in enumerate(vocabularies.values()):
        share = FORGOTTEN + 1 / (1 + vocabulary["count"].to_numpy("float32"))
        cells = ids[..., column]
        chance = random.random(cells.shape, "float32")
        cells[chance < share[cells]] = 0
        cells[chance < FORGOTTEN] = -1


def in_batches(function, rows, limit=8192):
    """Return what a function returns for some rows, called for one batch of them at a time."""
    batches = full_batches(rows, min(limit, len(rows)))
    return np.concatenate([function(batch) for batch in batches])[: len(rows)]


def predict_rows(model, inputs, rows):
    """Return the mean prediction of the members for some rows, in units of the target learned."""
    members = in_batches(lambda batch: model.predict_on_batch(gather(inputs, batch)), rows,
                         rows_at_once(model))
    return members.mean(axis=1)


# Several processes

PROCESS = int(os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", 0))
PROCESSES = int(os.environ.get("KERAS_DISTRIBUTION_NUM_PROCESSES", 1))


def join_processes():
    """Let all processes, or all devices of JAX, train jointly."""
    if PROCESSES > 1:
        addresses = os.environ.get("KERAS_DISTRIBUTION_JOB_ADDRESSES")
        if not addresses or keras.backend.backend() != "jax":
            raise InputError("Several processes need KERAS_BACKEND=jax and KERAS_DISTRIBUTION_JOB_"
                             "ADDRESSES: set both, or unset KERAS_DISTRIBUTION_NUM_PROCESSES.")
        import jax

        # Keras's own call learns of a dead process after 100 s. At the end the other processes
        # wait until the first one has reported and saved.
        jax.distributed.initialize(addresses.split(",")[0], PROCESSES, PROCESS,
                                   heartbeat_timeout_seconds=30, shutdown_timeout_seconds=3600)
    if keras.backend.backend() == "jax" and len(keras.distribution.list_devices()) > 1:
        data_parallel = keras.distribution.DataParallel(auto_shard_dataset=False)
        keras.distribution.set_distribution(data_parallel)


def check_devices(batch_size):
    """Raise InputError where the devices cannot share a batch of so many rows."""
    count = len(keras.distribution.list_devices()) if keras.distribution.distribution() else 1
    if batch_size % count:
        raise InputError(f"{count} devices cannot share batches of {batch_size} rows: "
                         "set BATCH_SIZE to a multiple of their number.")


Epoch = namedtuple("Epoch", "error number weights")


def average_epochs(model, best, measure):
    """Give a model the mean of the weights of some epochs; return their numbers and its error.

    They are the first of the best ones and each other that lowers what measure says of the model (a
    greedy soup: Wortsman et al. 2022, arXiv:2203.05482). build_embeddings.py keeps one epoch: from
    averages of vectors build_embed_model.py went on to a higher error.
    """
    chosen, least, weights = best[:1], best[0].error, best[0].weights
    for epoch in best[1:]:
        several = zip(*[each.weights for each in [*chosen, epoch]])
        # in float64, by which the average of vectors that do not change is exact
        average = [np.mean(each, axis=0, dtype="float64") for each in several]
        model.set_weights(average)
        error = measure()
        if error < least:
            chosen, least, weights = [*chosen, epoch], error, average
    model.set_weights(weights)
    return sorted(epoch.number for epoch in chosen), least


def finished(model):
    """Return a trained model, on one device from now on."""
    if keras.distribution.distribution():
        weights = model.get_weights()
        keras.distribution.set_distribution(None)
        model = keras.models.clone_model(keras.Model(model.inputs, model.outputs[0]))
        model.set_weights(weights)
    return model


# Figures


def row_errors(data, rows, predictions):
    """Return the error of each row: its squared error, or its log loss in nats."""
    target, predictions = data.target[rows], np.asarray(predictions, "float64")
    if "classes" not in data.target_info:
        return np.square(target - predictions)
    if predictions.ndim == 1:
        predictions = np.stack([1 - predictions, predictions], axis=1)
    chances = predictions[np.arange(len(rows)), target] / predictions.sum(axis=1)
    return -np.log(chances.clip(1e-15))


def mean_error(data, rows, predictions):
    """Return the weighted mean of the errors of some rows."""
    return float(np.average(row_errors(data, rows, predictions), weights=data.weights[rows]))


def score(data, predictions):
    """Return the figures of a report by name, for the predictions on the test rows.

    The first one, an RMSE, of log1p with LOG_TARGET, or the log loss, is what was trained for.
    """
    target, weights, info = data.target[data.test], data.weights[data.test], data.target_info
    figures = dict([named_error(mean_error(data, data.test, predictions), info)])
    if "classes" not in info:
        both = to_units(target, info), to_units(predictions, info)
        figures["RMSE"] = float(metrics.root_mean_squared_error(*both, sample_weight=weights))
        figures["MAE"] = float(metrics.mean_absolute_error(*both, sample_weight=weights))
        figures["R²"] = float(metrics.r2_score(*both, sample_weight=weights))
    elif np.ndim(predictions) == 2:
        right = target == predictions.argmax(axis=1)
        figures["accuracy"] = float(np.average(right, weights=weights))
    elif len(np.unique(target)) == 2:
        figures["AUC"] = float(metrics.roc_auc_score(target, predictions, sample_weight=weights))
    return figures


def to_units(values, target_info):
    """Return values of a regression, as the network learns them, in the target's units."""
    units = np.asarray(values, "float64") * target_info["std"] + target_info["mean"]
    return np.expm1(units) if target_info["log"] else units


def bootstrap(answers, data):
    """Return 1,000 errors of each model, each on test rows drawn anew: a frame (draws, models).

    answers: {model: predictions for the test rows}. All models are judged on the same draws, so
    that their differences can be compared. Rows of one value of SPLIT_COLUMN are drawn together, if
    it has five values; more than 1,000 rows or values are drawn as 1,000 blocks (Efron 1979, Annals
    of Statistics 7).
    """
    weights, rows = data.weights[data.test], np.arange(len(data.test))
    of_rows = [row_errors(data, data.test, predictions) for predictions in answers.values()]
    _, blocks = np.unique(rows if data.groups is None else data.groups, return_inverse=True)
    blocks = blocks if blocks.max() >= 4 else rows
    blocks = blocks * min(blocks.max() + 1, 1000) // (blocks.max() + 1)
    sums = [np.bincount(blocks, values * weights) for values in [*of_rows, np.ones(len(rows))]]
    sums = np.stack(sums, axis=1)
    draws = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), 1000)
    means = draws @ sums
    return pd.DataFrame(means[:, :-1] / means[:, -1:], columns=list(answers))


def named_error(error, target_info):
    """Return the name of an error that training looks at, and its value in the target's units."""
    if "classes" in target_info:
        return "log loss", error
    name = "RMSE of log1p" if target_info["log"] else "RMSE"
    return name, float(error**0.5 * target_info["std"])


def written(figure, like=None):
    """Return a figure as text, with the decimals that four digits of it, or of like, take."""
    like = abs(figure if like is None else like)
    if not 1e-6 < like < 1e15:
        return f"{figure:.4g}"
    digits = max(0, 3 - int(np.floor(np.log10(like))))
    return f"{round(figure, digits) + 0.0:,.{digits}f}"  # no -0.0


# Files

UNKNOWN = "<unknown>"  # row 0 in the vocabulary; it is found by its place, never by this name
ALONE = "categorical columns alone (build_embeddings.py)"  # a line of the second script's report


def fingerprint(cells):
    """Return 16 hexadecimal digits that tell a column's cells, in their order, from others."""
    return f"{pd.util.hash_pandas_object(pd.Series(cells)).sum():016x}"


def fingerprint_embedding(weights, vocabulary):
    """Return what binds each vector to its category and count; the order of the rows is free."""
    rows = vocabulary.astype({"category": object}).join(pd.DataFrame(weights))
    return f"{pd.util.hash_pandas_object(rows, index=False).sum():016x}"


def file_stems(columns):
    """Return the name of each column's files: its own, or one that any file system can bear."""
    folded = [unicodedata.normalize("NFC", column).casefold() for column in columns]
    stems = {}
    for column, lower in zip(columns, folded):
        stem = re.sub(r"[^\w .+-]|^\.", lambda found: f"%{ord(found[0]):02X}", column)
        if folded.count(lower) > 1 or len(stem.encode()) > 100:
            stem = f"{stem[:40]}-{fingerprint([column])[:8]}"
        stems[column] = stem
    return stems


def open_folder(name):
    """Return the folder of the saved files, ready to be written; finish what a kill cut short."""
    folder = here(name)
    if PROCESS:
        return folder  # the first process writes for all
    with plain_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        finish_saving(folder)
        (folder / ".saving").mkdir()  # better a refusal now than after hours of training
        (folder / ".saving").rmdir()
        known = read_run(folder).get("files", [])
        for stem in file_stems(CATEGORICAL_COLUMNS).values():
            if f"{stem}.csv" not in known:
                refuse_others(folder / f"{stem}.csv")
    return folder


def refuse_others(file):
    """Raise InputError where a file that will be written is there and is no vocabulary."""
    if file.exists():
        with file.open("rb") as content:
            if content.read(18) != b'"category","count"':
                raise InputError(f"{file} is not of these scripts, which would write over it: set "
                                 "another EMBEDDINGS_DIR.")


@contextmanager
def plain_errors(folder):
    """Turn what the file system refuses into a sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder}/ cannot be written ({error}): make room there, or set another "
                         "EMBEDDINGS_DIR.") from error


@contextmanager
def saving(folder, run):
    """Yield a new folder for a run's files; then they take the places of the last run's.

    Killed at any moment, it leaves the old run or, at the next start at the latest, the new one.
    """
    new = folder / ".saving"
    with plain_errors(folder):
        try:
            new.mkdir()
        except FileExistsError as error:
            raise InputError(f"Another run is saving to {folder}/, or was stopped while it was: "
                             "run this script again.") from error
        try:
            yield new
            run["files"] = sorted({*run.get("files", []), *(file.name for file in new.iterdir())})
            text = json.dumps(run, indent=1, ensure_ascii=False)
            (new / ".run").write_text(text, encoding="utf-8")
            os.rename(new / ".run", new / "run.json")  # from here on the new run counts
        finally:
            finish_saving(folder)


def finish_saving(folder):
    """Move the files of a complete run to their places, run.json last; forget an incomplete one."""
    new = folder / ".saving"
    if (new / "run.json").exists():
        for name in {*read_run(folder).get("files", [])} - {*read_run(new)["files"]}:
            (folder / name).unlink(missing_ok=True)
        for file in sorted(new.iterdir(), key=lambda file: file.name == "run.json"):
            os.replace(file, folder / file.name)
    shutil.rmtree(new, ignore_errors=True)


def read_run(folder):
    """Return what run.json says of the run in the folder, {} where there is none."""
    file = folder / "run.json"
    if not file.exists():
        return {}
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        if not set("columns rows target test files unknown validation_error".split()) <= {*run}:
            raise ValueError("entries are missing")
        return run
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{file} is damaged ({error}): remove it and run build_embeddings.py "
                         "again.") from error


def save_embeddings(folder, matrices, vocabularies, run, look):
    """Save each column's matrix and vocabulary, in run.json what run says of them, and look.js."""
    stems = file_stems(vocabularies)
    run["columns"] = {}
    with saving(folder, run) as new:
        for weights, (column, vocabulary) in zip(matrices, vocabularies.items()):
            file = new / stems[column]
            np.save(f"{file}.npy", weights)
            vocabulary.to_csv(f"{file}.csv", index=False, quoting=csv.QUOTE_NONNUMERIC)
            bound = fingerprint_embedding(weights, vocabulary)
            run["columns"][column] = {"file": file.name, "fingerprint": bound}
        write_look(new, look)
    print("Saved")
    for weights, stem in zip(matrices, stems.values()):
        print(f"  {folder / stem}.npy {weights.shape} and .csv")
    print(f"  {folder / 'look.html'} shows them: open it in a browser")


# The page

LOOK = "window.run = "  # how look.js begins: a page opened from disk may load a script, no JSON


def first_look(matrices, vocabularies, ids, data, history, predictions):
    """Return what look.html shows after the first script."""
    info, colour = data.target_info, f"mean {TARGET_COLUMN}"
    means = mean_targets(ids, vocabularies, data)
    columns = describe_columns(matrices, vocabularies, means)
    if "classes" in info:
        colour = f"share of {info['classes'][1]!r}" if data.outputs == 1 else None
    sizes = [len(rows) for rows in (data.training, data.validation, data.test)]
    alone = intervals(bootstrap({ALONE: predictions}, data), info)
    training = [describe_training("build_embeddings.py", history, info)]
    return {"task": TASK, "target": TARGET_COLUMN, "rows": sizes, "colour": colour,
            "columns": columns, "training": training, "intervals": alone}


def describe_training(script, history, target_info):
    """Return the curve of a training, in the target's units."""
    errors = [*history["errors"], history["least"]]
    names, figures = zip(*[named_error(error, target_info) for error in errors])
    *figures, least = rounded(figures)
    return {"script": script, "figure": names[0], "errors": figures, "kept": history["kept"],
            "least": least}


def intervals(draws, target_info):
    """Return the 95 % interval of each model's error in the target's units, from its draws."""
    ends = draws.quantile([0.025, 0.975])
    return {model: rounded(named_error(end, target_info)[1] for end in ends[model])
            for model in ends}


def mean_targets(ids, vocabularies, data):
    """Return for each column the mean target of the training rows of its first 1,000 categories.

    In the target's units; of two classes the share of the second; None of more than two.
    """
    info, rows = data.target_info, data.training
    if data.outputs > 1:
        return [None] * len(vocabularies)
    target = data.target[rows] if "classes" in info else to_units(data.target[rows], info)
    means = []
    for column in vocabularies:
        codes = ids[column].iloc[rows]
        counts = np.bincount(codes, data.weights[rows])[1:1001]
        means.append(np.bincount(codes, target * data.weights[rows])[1:1001] / counts)
    return means


def describe_columns(matrices, vocabularies, means):
    """Return what look.html shows of each column: a dict of its 1,000 most frequent categories.

    x, y: a place for each on a map; share, line: how much of the vectors' variance the best two
    directions hold, and the best one; near: the nearest five, at most half of all, by distance,
    those of 20 rows or more first. Distance, not the angle: on the flights, airports that are near
    by distance differ by 12 minutes of air time, by angle by 20, as length says much too.
    """
    columns = []
    for weights, (name, vocabulary), targets in zip(matrices, vocabularies.items(), means):
        vectors, counts = weights[1:1001], vocabulary["count"][1:1001].to_numpy()
        places, share, layout = lay_out(vectors)
        if targets is not None and places[:, 0] @ (targets - targets.mean()) < 0:
            places[:, 0] *= -1  # to the right is higher
        distances = metrics.pairwise.euclidean_distances(vectors)
        last = np.where(np.eye(len(vectors)), 2, counts < 20)  # few rows, then itself
        near = np.lexsort([distances, last])[:, : min(5, len(vectors) // 2)]
        columns.append({
            "name": name, "dimensions": weights.shape[1], "cardinality": len(vocabulary) - 1,
            "layout": layout, "share": float(share.sum()), "line": float(share[0]),
            "categories": vocabulary["category"][1:1001].tolist(), "counts": counts.tolist(),
            "means": None if targets is None else rounded(targets), "near": near.tolist(),
            "x": rounded(places[:, 0]), "y": rounded(places[:, 1])})
    return columns


def rounded(values):
    """Return values for JSON, of seven digits, None in place of NaN."""
    return [float(f"{value:.7g}") if np.isfinite(value) else None for value in values]


def lay_out(vectors):
    """Return places (categories, 2), the share of the variance of two directions, and the method.

    Principal components where the first two hold most of the variance, else t-SNE (van der Maaten
    and Hinton 2008).
    """
    if len(vectors) < 2:
        return np.zeros((len(vectors), 2)), np.array([1.0, 0.0]), "principal components"
    components = decomposition.PCA(2, random_state=SEED).fit(vectors)
    share = np.nan_to_num(components.explained_variance_ratio_)
    if share.sum() > 0.6 or len(vectors) <= 30:  # t-SNE looks at 30 neighbours
        return np.array(components.transform(vectors)), share, "principal components"
    tsne = manifold.TSNE(init="pca", max_iter=500, random_state=SEED)
    return np.array(tsne.fit_transform(vectors)), share, "t-SNE"  # scikit-learn may give frames


def write_look(folder, look):
    """Write what look.html shows, and the page itself into a folder of another name."""
    text = json.dumps(look, allow_nan=False)
    (folder / "look.js").write_text(f"{LOOK}{text};\n", encoding="utf-8")
    page = Path(__file__).parent / "embeddings" / "look.html"
    if page.exists() and page.parent.resolve() != folder.parent.resolve():
        shutil.copy(page, folder)


def read_look(folder):
    """Return what write_look wrote; nothing where it is damaged, for it can be made again."""
    try:
        return json.loads((folder / "look.js").read_text(encoding="utf-8")[len(LOOK) : -2])
    except (OSError, ValueError):
        return {}


# Messages


@contextmanager
def stage(title):
    """Print what begins and, at its end, how many seconds it took."""
    print(title, flush=True)
    begin = time.perf_counter()
    yield
    print(f"  {time.perf_counter() - begin:.1f} s", flush=True)


def progress(target_info):
    """Return a function that shows how training goes, in a few dozen lines at most."""
    begin, due, first = time.perf_counter(), 0, 0

    def show(recipe, errors, least):
        nonlocal due, first
        epoch, most = len(errors), recipe.steady_epochs + recipe.falling_epochs
        seconds = time.perf_counter() - begin
        first = first or seconds  # the first epoch, which compiles, says nothing of the others
        if seconds > due or epoch == most:
            due = seconds + max(3, seconds / 10)
            name, now = named_error(errors[-1], target_info)
            _, best = named_error(least, target_info)
            left = (seconds - first) / max(1, epoch - 1) * (most - epoch)
            left = f", about {left:.0f} s left" if epoch > 1 else ""
            place = f"epoch {epoch} of {most}"
            early = ", none early in the fall" if errors[-1] < least else ""  # see is_lucky
            print(f"  {place:<15}  validation {name} {written(now)} (best {written(best)}{early})  "
                  f"{seconds:.1f} s{left}", flush=True)

    return show


def print_kept(epochs, error, target_info):
    """Print of which epochs the weights are, and their error on the validation rows."""
    what = "epoch" if len(epochs) == 1 else "the average of epochs"
    name, figure = named_error(error, target_info)
    print(f"  kept: {what} {', '.join(map(str, epochs))}, validation {name} {written(figure)}")


def print_sizes(vocabularies, unknown):
    """Print how many categories each column has and what may be wrong with them."""
    print("Embeddings")
    width = max(map(len, vocabularies))
    for column, vocabulary in vocabularies.items():
        counts = vocabulary.set_index("category")["count"][1:]
        line = f"  {column:<{width}} {len(counts):>7,} categories -> "
        line += f"{embedding_dim(len(counts))} dimensions"
        if len(counts) > counts.sum() / 4:
            line += " (hardly a category twice: its vectors will not generalise)"
        if unknown[column] >= 0.01:
            line += f" ({unknown[column]:.1%} of the test cells are unknown)"
        print(line)
        if groups := alike(counts.index):
            pairs = ", ".join(f"{group[0][:40]!r} and {group[1][:40]!r}" for group in groups[:2])
            rows = sum(counts[group[1:]].sum() for group in groups)
            print(f"    {rows:,} rows of {column} differ in spelling alone, as {pairs} do: "
                  "write them alike if they mean the same")


def print_test(figures):
    """Print the figures of the test rows."""
    told = [f"{name} {written(figure)}" for name, figure in figures.items()]
    print(f"Test figures of {TARGET_COLUMN}: {', '.join(told)}")


def print_nearest(look):
    """Print what is nearest to the three most frequent categories, in columns of more than ten.

    Where vectors lie along one line, their order is all there is to say.
    """
    shown = f"rows and {look['colour']}" if look["colour"] else "rows"
    print(f"Nearest categories (with their {shown}; '?': fewer than 20 rows)")
    width = max(len(column["name"]) for column in look["columns"])
    for column in look["columns"]:
        texts = list(map(label, column["categories"], column["counts"],
                         column["means"] or itertools.repeat(None)))
        if len(texts) <= 10:
            continue
        if column["line"] > 0.9:
            order = [texts[i] for i in np.argsort(column["x"][:20])]
            way = ", by and large from low to high" if column["means"] else ""
            lines = [f"along one line{way}: {', '.join([*order[:3], '...', *order[-3:]])}"]
        else:
            lines = [f"{texts[i]} ({column['counts'][i]:,} rows): "
                     + ", ".join(texts[near] for near in column["near"][i][:4]) for i in range(3)]
        for name, line in zip([column["name"], "", ""], lines):
            print(f"  {name:<{width}}  {line}")


def label(category, count, mean):
    """Return a category as it is shown: white space folded, cut in the middle, its mean behind."""
    text = " ".join(category.split()) or "(empty)"
    text = text if len(text) <= 40 else f"{text[:20]}…{text[-19:]}"
    return text + ("?" if count < 20 else "") + ("" if mean is None else f" {written(mean)}")


def run_script(main, arguments=()):
    """Run main; end with one sentence on stderr and status 1 where the user has to act."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # for categories that the screen cannot show
    try:
        if arguments:
            raise InputError(f"{arguments[0]!r} is not understood: a script takes no arguments; "
                             "edit the block at its top.")
        main()
    except InputError as error:
        sys.exit(f"Error: {error}")
    except NameError as error:
        if error.name not in " ".join(names for names, *_ in RULES).split():
            raise
        sys.exit(f"Error: {error.name} is missing from the edit block: put its line back.")
    except BrokenPipeError:
        sys.exit("Stopped: the program that was reading the output has ended.")
    except KeyboardInterrupt:
        sys.exit(f"Stopped: {EMBEDDINGS_DIR}/ holds nothing that is half done.")


if __name__ == "__main__":
    run_script(main, sys.argv[1:])
