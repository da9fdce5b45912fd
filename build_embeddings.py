"""Learn a vector for every category of every categorical column of a table: entity embeddings.

    python build_embeddings.py

A network learns to predict TARGET_COLUMN from CATEGORICAL_COLUMNS alone. Each column has an embedding layer: a matrix
with one row for each category, trained like any other weights. What the layers learned is saved, for each column, as

    embeddings/<column>.npy    the matrix, float32; row 0 stands for every category that the training rows do not have
    embeddings/<column>.csv    the vocabulary: the category of each row of the matrix and its count in the training rows

build_embed_model.py reads these files, adds the numerical columns and trains again.

Source: Guo and Berkhahn, Entity Embeddings of Categorical Variables, 2016, arXiv:1604.06737.
"""

import bz2
import csv
import difflib
import glob
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import sys
import time
import unicodedata
import zlib
from array import array
from collections import defaultdict, namedtuple
from contextlib import contextmanager
from itertools import compress, count, islice
from operator import itemgetter
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two runs at once out of one folder
    fcntl = None

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before the imports: hides what can be hidden of TensorFlow's chatter
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # boosting beside other work: OpenMP's idle threads must sleep, not spin

import keras
import numpy as np
import pandas as pd
from keras import layers, ops
from sklearn import metrics

tf = None
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf  # for what only TensorFlow can do: update single rows of a matrix

# ----------------------------------------------------------------------------------------------------------------------
# Edit this block for your own table.

# data
DATA_FILE = "data/flights.csv.gz"  # CSV, plain or .gz .bz2 .xz; a pattern ("data/part-*.csv") is read as one table
TARGET_COLUMN = "air_time"
TASK = "regression"  # or "binary", "multiclass"; class labels may be text
LOG_TARGET = False  # True: regression on log1p(target); for prices, sales and whatever else has a long upper tail
CATEGORICAL_COLUMNS = ["month", "weekday", "hour", "carrier", "origin", "dest", "tailnum", "model", "manufacturer", "engine"]
SPLIT_COLUMN = None  # None: random rows; a column such as "date": its largest values are held out, to test on the future

# embeddings
MAX_EMBEDDING_DIM = 50  # a category's vector has min(cardinality / 2, this) numbers; 8 is easier to look at and to reuse
EMBEDDINGS_DIR = "embeddings"

# training
EPOCHS = None  # None: follows the number of rows and what they bring; the best on the validation rows is kept in any case
BATCH_SIZE = None  # None: follows the number of rows; a larger batch is faster for each row and learns less from it
LEARNING_RATE = 5e-3  # the highest; lower it if training diverges
SEED = 0  # another seed: other random rows held out, other random starts
# ----------------------------------------------------------------------------------------------------------------------

TRAINING, VALIDATION, TEST = 0, 1, 2  # the parts into which split_rows divides the table
Recipe = namedtuple("Recipe", "batch_size round_rows cycles members widths weight_decay")
HIDDEN = 0.002  # the share of categorical cells read as row 0 while training: it learns what to say of an unknown category
UNKNOWN = "<unknown>"  # how row 0 is called in the vocabulary file; it is found by its place, never by this name
MISSING_NUMBERS = ["", "NA", "NaN", "nan"]  # in numerical columns; in categorical ones they are text like any other
ALONE = "categorical columns alone (build_embeddings.py)"  # the name of the first script's line in the final report
PROCESS, PROCESSES = (int(os.environ.get(f"KERAS_DISTRIBUTION_{name}", n)) for name, n in [("PROCESS_ID", 0), ("NUM_PROCESSES", 1)])


class InputError(ValueError):
    """A mistake in the table, the settings or the saved files; its text is one sentence that says how to mend it."""


@contextmanager
def plain_errors():
    """End the script with one sentence on stderr and exit status 1 where the user, not the code, has to act."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a category that the screen cannot show must not end a run
    try:
        yield
    except InputError as error:
        sys.exit(f"Error: {error}")
    except BrokenPipeError:
        sys.exit("Stopped: the program that was reading the output has ended.")
    except OSError as error:  # a disk that is full, a folder that is read-only; what is read says its own sentence
        sys.exit(f"Error: {EMBEDDINGS_DIR}/ cannot be written ({error}): make room there, or set another EMBEDDINGS_DIR.")
    except KeyboardInterrupt:
        sys.exit(f"Stopped: {EMBEDDINGS_DIR}/ holds nothing that is half done.")


@contextmanager
def stage(title):
    """Print what begins and, at its end, how many seconds it took."""
    print(title, flush=True)
    start = time.perf_counter()
    yield
    print(f"  {time.perf_counter() - start:.1f} s", flush=True)


def join_processes():
    """Let the processes of KERAS_DISTRIBUTION_NUM_PROCESSES, or the devices of this one, train jointly: JAX can."""
    if PROCESSES > 1:
        addresses = os.environ.get("KERAS_DISTRIBUTION_JOB_ADDRESSES")
        if not addresses or keras.backend.backend() != "jax":
            raise InputError(
                "Several processes need KERAS_BACKEND=jax and KERAS_DISTRIBUTION_JOB_ADDRESSES: "
                "set both, or unset KERAS_DISTRIBUTION_NUM_PROCESSES."
            )
        import jax  # keras.distribution.initialize() does the same, but learns of a dead process after 100 s

        first = addresses.split(",")[0]  # the others wait at their end, at most an hour, until it has reported and saved
        jax.distributed.initialize(first, PROCESSES, PROCESS, heartbeat_timeout_seconds=30, shutdown_timeout_seconds=3600)
    if keras.backend.backend() == "jax" and len(keras.distribution.list_devices()) > 1:
        keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))


# Reading


def check_columns(categorical_columns, numerical_columns):
    """Raise InputError where the settings contradict each other."""
    if TASK not in ("regression", "binary", "multiclass"):
        raise InputError(f"TASK is {TASK!r}; it must be 'regression', 'binary' or 'multiclass'.")
    if not categorical_columns or not isinstance(categorical_columns, list) or not isinstance(numerical_columns, list):
        raise InputError("CATEGORICAL_COLUMNS is empty, or one of the lists is no list: name columns as in [\"dest\", \"month\"].")
    if not isinstance(SEED, int) or SEED < 0:
        raise InputError(f"SEED is {SEED!r}; it must be a whole number, 0 or more.")
    columns = [*categorical_columns, *numerical_columns]
    for column in columns:
        if columns.count(column) > 1:
            raise InputError(f"Column {column!r} is listed twice: leave it in one place of one list.")
    if SPLIT_COLUMN in numerical_columns:
        raise InputError(f"SPLIT_COLUMN {SPLIT_COLUMN!r} must not be a number as well: give it a copy under another name.")
    if TARGET_COLUMN in [*columns, SPLIT_COLUMN]:
        raise InputError(f"TARGET_COLUMN {TARGET_COLUMN!r} must not be an input as well: take it off the lists.")


def check_header(header, columns, file):
    """Raise InputError where one of the columns is not once in the header of a file."""
    header = [name for name in header if name]  # several columns may go without one: nobody can ask for them
    if len(header) < 2:
        raise InputError(f"{file} is empty, or its header is not the names of two columns or more with commas between them.")
    for column in columns:
        if column not in header:
            close = difflib.get_close_matches(column, header, n=1, cutoff=0)
            raise InputError(f"{file} has no column {column!r}; the closest that it has is {close[0]!r}.")
        if header.count(column) > 1:
            raise InputError(f"{file}: {header.count(column)} columns are called {column!r}; rename all but one.")


def read_lines(file):
    """Yield the line on which each row of a CSV file begins and its cells as text, the header's first.

    Raises InputError where a row has fewer or more cells than the header, or the file is not UTF-8 text.
    """
    csv.field_size_limit(2**31 - 1)  # its own limit refuses a cell of 128 KB
    opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(Path(file).suffix, open)
    line, width = 1, 0
    try:
        with opener(file, "rt", encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            for cells in reader:
                width = width or len(cells)
                if cells and len(cells) != width:
                    raise InputError(
                        f"{file}, line {line}: {len(cells)} cells where the header has {width}; "
                        "correct the line, and put quotes around a cell that holds a comma."
                    )
                if cells:
                    yield line, cells
                line = reader.line_num + 1
    except (csv.Error, OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error) as error:
        raise InputError(
            f"{file}, line {line}, or near it: not readable ({error}); save it as CSV in UTF-8, or download it again."
        ) from error


def read_pieces(columns):
    """Yield DATA_FILE 256 rows at a time: the file, the line on which each row begins, the columns' cells by name."""
    files = [DATA_FILE] if os.path.isfile(DATA_FILE) else sorted(glob.glob(DATA_FILE))
    if not files:
        raise InputError(f"No file {DATA_FILE}: correct DATA_FILE in build_embeddings.py.")
    for file in files:
        rows = read_lines(file)
        _, header = next(rows, (1, []))
        check_header(header, columns, file)
        cell = {column: itemgetter(header.index(column)) for column in columns}
        while piece := list(islice(rows, 256)):  # more would leave the processor's cache, at half the speed
            lines, cells = zip(*piece)
            yield file, lines, {column: list(map(cell[column], cells)) for column in columns}


def to_numbers(cells):
    """Return a list of cells as float64: NaN where missing, infinite where it is no number that float32 can hold."""
    try:
        text = "".join(cells)
        if "_" in text or not text.isascii():
            raise ValueError("float() would read 1_000 and the digits of every script")
        numbers = np.fromiter(map(float, cells), "float64", len(cells))  # seven times as fast as pandas
    except (TypeError, ValueError):
        numbers = pd.to_numeric(np.array(cells, object), errors="coerce").astype("float64")
    for row in np.flatnonzero(~(np.abs(numbers) <= np.finfo("float32").max)):
        numbers[row] = np.nan if cells[row] in MISSING_NUMBERS else np.inf
    return numbers


def read_table(text_columns, number_columns):
    """Read columns of DATA_FILE into a dict: pandas Categoricals of the text in the file, and arrays of numbers.

    Numbers are float32, NaN where missing; the target of a regression is float64. Text becomes codes piece by piece, so
    that it is never in memory as a whole. Raises InputError for a table that cannot be read as it is meant.
    """
    codes = {column: defaultdict(count().__next__) for column in text_columns}  # text -> its code, in the order of appearance
    kinds = dict.fromkeys(text_columns, "i") | {column: "d" if column == TARGET_COLUMN else "f" for column in number_columns}
    table, without_target = {column: array(kind) for column, kind in kinds.items()}, []  # they grow in their place: no second copy
    for file, lines, piece in read_pieces(table):
        for column, cells in piece.items():
            if column in codes:
                values = np.fromiter(map(codes[column].__getitem__, cells), "int32", len(cells))
            else:
                values = to_numbers(cells)
                if np.isinf(values).any():
                    row = np.argmax(np.isinf(values))
                    remedy = "leave it empty if it is missing, or list the column as categorical if it holds names or codes"
                    if column == TARGET_COLUMN:
                        remedy = "remove the row, or set TASK if the target names classes"
                    raise InputError(
                        f"{file}, line {lines[row]}: column {column!r} holds {cells[row][:50]!r}, which is not a number that can "
                        f"be used; write it like 1234.5, {remedy}."
                    )
            if column == TARGET_COLUMN:
                absent = [cell == "" or value != value for cell, value in zip(cells, values)]
                without_target += [f"{file}, line {line}" for line in compress(lines, absent)]
            table[column].frombytes(values.astype(table[column].typecode).tobytes())
    row_count = len(table[TARGET_COLUMN])
    if row_count < 20:
        raise InputError(f"{DATA_FILE} has {row_count} rows below its header; 20 are the fewest that can be split in three.")
    if without_target:
        raise InputError(f"{without_target[0]}: no {TARGET_COLUMN!r}, as in {len(without_target):,} rows in all; remove these rows.")
    for column, cells in table.items():
        table[column] = np.frombuffer(cells, cells.typecode)
        if column in codes:
            table[column] = pd.Categorical.from_codes(table[column], pd.Index(list(codes[column]), dtype=object))
    return table


# The rows: one split, and what is fitted on its training part


def split_rows(row_count, order=None):
    """Return the part of every row, int8: 80 % training, 10 % validation, 10 % test.

    order, needed with SPLIT_COLUMN, is a Categorical with the text of that column: its largest values, numbers or dates, are
    held out, equal values in one part. Both scripts call this on the same rows and so get the same parts.
    """
    tenth = row_count // 10
    if SPLIT_COLUMN and order is None:
        raise InputError(f"split_rows needs SPLIT_COLUMN {SPLIT_COLUMN!r} too, to know its rows: give its text as a pandas Categorical.")
    if order is None:
        part = np.repeat(np.array([TRAINING, VALIDATION, TEST], "int8"), [row_count - 2 * tenth, tenth, tenth])
        return np.random.default_rng(SEED).permutation(part)
    texts = pd.Series(order.categories)
    values = pd.to_numeric(texts, errors="coerce")
    if values.isna().all():
        values = pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True)
    if values.isna().any():
        wrong = texts[values.isna()].iloc[0][:50]
        raise InputError(f"SPLIT_COLUMN {SPLIT_COLUMN!r} needs numbers or dates like 2026-01-31, none missing, but has {wrong!r}.")
    rank = values.rank(method="dense").to_numpy("int64")[order.codes]
    first_held_out = np.sort(rank)[[row_count - 2 * tenth, row_count - tenth]]
    part = np.searchsorted(first_held_out, rank, side="right").astype("int8")
    sizes = np.bincount(part, minlength=3)
    if not sizes.all() or sizes[TRAINING] < row_count / 2:
        raise InputError(f"SPLIT_COLUMN {SPLIT_COLUMN!r} has too few values, or too many rows of one, to hold out two tenths.")
    return part


def read_target(table, part):
    """Return the target as the network is trained on it, and a dict of what turns its answers back.

    Regression: float32, mean 0 and standard deviation 1 on the training rows. Classes: int32 positions in "classes",
    which are sorted as text; the second of a binary target is the one whose probability is predicted.
    """
    target = table[TARGET_COLUMN]
    if TASK != "regression":
        classes = sorted(target[part == TRAINING].unique())
        if len(classes) < 2 or TASK == "binary" and len(classes) > 2:
            raise InputError(
                f"TARGET_COLUMN {TARGET_COLUMN!r} has {len(classes)} classes in the training rows ({', '.join(classes)[:80]}); "
                f"TASK {TASK!r} needs {'two' if TASK == 'binary' else 'two or more'}."
            )
        labels = target.set_categories(classes).codes.astype("int32")
        if (labels < 0).any():
            lost = target[labels < 0][0]
            raise InputError(f"Class {lost!r} of {TARGET_COLUMN!r} is in no training row; remove its rows or join it to another.")
        return labels, {"classes": classes}
    if LOG_TARGET:
        if target.min() <= -1:
            raise InputError(f"LOG_TARGET needs values above -1, but {TARGET_COLUMN!r} has {target.min():g}.")
        target = np.log1p(target)
    mean, std = float(target[part == TRAINING].mean()), float(target[part == TRAINING].std())
    if std <= 1e-12 * abs(mean):
        raise InputError(f"TARGET_COLUMN {TARGET_COLUMN!r} has one value in all training rows: there is nothing to learn.")
    return ((target - mean) / std).astype("float32"), {"mean": mean, "std": std}


def load_rows(categorical_columns, numerical_columns):
    """Read the table and split it; return table, rows of the parts, target, target_info and what tells these rows from others.

    The rows of the parts are the numbers of the training, validation and test rows, int32.
    """
    text_columns, number_columns = [*categorical_columns], [*numerical_columns]
    (number_columns if TASK == "regression" else text_columns).append(TARGET_COLUMN)
    if SPLIT_COLUMN and SPLIT_COLUMN not in text_columns:
        text_columns.append(SPLIT_COLUMN)
    with stage(f"Reading {DATA_FILE}"):
        table = read_table(text_columns, number_columns)
        part = split_rows(len(table[TARGET_COLUMN]), table.get(SPLIT_COLUMN))
        target, target_info = read_target(table, part)
        parts = [np.flatnonzero(part == which).astype("int32") for which in (TRAINING, VALIDATION, TEST)]
        print("  {:,} rows: {:,} train, {:,} validation, {:,} test".format(len(part), *map(len, parts)))
    rows = {"settings": [TARGET_COLUMN, TASK, LOG_TARGET, SPLIT_COLUMN, SEED], "split": fingerprint(part)}
    for column in [*categorical_columns, TARGET_COLUMN]:
        cells = table[column]
        cells = [cells.codes, cells.categories.to_numpy()] if column in text_columns else [cells]
        rows[f"cells of {column}"] = fingerprint(*cells)
    del table[TARGET_COLUMN]
    return table, parts, target, target_info, rows


def build_vocabulary(column, training):
    """Return a frame (category, count) of the categories in the training rows, the most frequent first, after row 0."""
    counts = column[training].value_counts()
    counts.index = counts.index.astype(object)  # ties in the order of their text: that of the codes comes from all rows
    counts = counts[counts > 0].sort_index().sort_values(ascending=False, kind="stable")
    return pd.DataFrame({"category": [UNKNOWN, *counts.index], "count": [0, *counts]})


def row_numbers(column, vocabulary):
    """Return for each cell of a Categorical the row of its category in the vocabulary; 0 where it has none."""
    return column.set_categories(vocabulary["category"][1:]).codes + 1  # int8 to int32, as needed; code -1: not among them


# The network


def embedding_dim(cardinality):
    """Return the length of a category's vector: half the number of categories, at least 2, at most MAX_EMBEDDING_DIM."""
    return max(2, min(cardinality // 2, MAX_EMBEDDING_DIM))


def choose_recipe(row_count, epochs, rows_to_see):
    """Return what is best for so many training rows, as measured in tests/benchmarks: network, batch, rounds and cycles.

    A round is what one call of fit sees, after which the validation error is looked at: an epoch, up to four of them in a small
    table, at most a million rows of a large one. cycles: the rounds of each; epochs: those that the user asks for, in one cycle,
    or None.
    """
    batch_size = BATCH_SIZE or 2 ** int(np.round(np.clip(np.log2(row_count / 50), 5, max(9, np.log2(row_count / 4000)))))
    passes = 1 if epochs else 2 ** int(np.clip(np.log2(10_000 / row_count), 0, 2))
    pieces = -(-row_count // 1_000_000)
    round_rows = -(-row_count * passes // (pieces * batch_size)) * batch_size
    most = epochs or np.clip(rows_to_see / row_count, 3, 252)
    lengths = np.array([most])  # of the cycles, in epochs
    weight_decay = 0.05 * np.clip(50_000 / row_count, 1, 4)  # of the dense layers
    network = {"members": 1, "widths": (512, 256)}
    if row_count < 100_000:  # so few rows would be learned by heart: the fewer, the more members of a smaller network
        network = {"members": int(np.clip(2048 // batch_size, 8, 32)), "widths": (256, 128)}
        if not epochs:
            doubling = 4 * 2 ** np.arange(6)
            lengths = doubling[np.cumsum(doubling) <= most]
    cycles = np.maximum(1, lengths * pieces / passes).astype(int)
    return Recipe(batch_size=batch_size, round_rows=round_rows, cycles=cycles, weight_decay=weight_decay, **network)


def output_count(target_info):
    """Return how many numbers a network answers for a row: one, or with TASK "multiclass" one for each class."""
    return len(target_info["classes"]) if TASK == "multiclass" else 1


def dense_layers(features, target_info, recipe, effects=0.0):
    """Return the answers (rows, members) or (rows, members, classes) of networks that share all weights but a few.

    Several members see the features through signs of their own, trained with the rest, and have output layers of their
    own: their mean is better than one network (TabM: Gorishniy et al. 2024, arXiv:2410.24210). effects, (rows, 1, outputs),
    are added to the answers of each before they become probabilities.
    """
    hidden = layers.RepeatVector(recipe.members)(features)
    if recipe.members > 1:
        signs = layers.EinsumDense("rmf,mf->rmf", output_shape=hidden.shape[1:])
        hidden = signs(hidden)
        signs.set_weights([np.random.default_rng(SEED).choice([-1.0, 1.0], signs.kernel.shape)])
    for units in recipe.widths:
        hidden = layers.Dense(units, activation="relu", kernel_initializer="he_normal")(hidden)
    shape = (recipe.members, output_count(target_info))
    answers = layers.EinsumDense("rmf,mfo->rmo", output_shape=shape, bias_axes="mo")(hidden) + effects
    if TASK == "multiclass":
        return ops.softmax(answers)
    answers = layers.Reshape((recipe.members,))(answers)
    return ops.sigmoid(answers) if TASK == "binary" else answers


def build_model(vocabularies, target_info, recipe):
    """Return the network: ids (rows, columns) int32 -> a vector for each -> dense layers -> the target."""
    ids = keras.Input((len(vocabularies),), dtype="int32")
    vectors, random = [], np.random.default_rng(SEED)
    for i, vocabulary in enumerate(vocabularies.values()):
        shape = len(vocabulary), embedding_dim(len(vocabulary) - 1)
        layer = layers.Embedding(*shape, "zeros", name=f"embedding_{i}")
        vectors.append(layer(ids[:, i]))
        # Keras's own range of start values, in a third of the memory that its initializer takes
        layer.set_weights([random.random(shape, "float32") / 10 - 0.05])
    return keras.Model([ids], dense_layers(layers.concatenate(vectors), target_info, recipe))


# Training


def gather(columns, rows):
    """Return some rows of a list of columns as one array (rows, columns)."""
    return np.stack([column[rows] for column in columns], axis=1)


def sample(rows, limit):
    """Return the rows, or as many of them at random as the limit allows."""
    return rows if len(rows) <= limit else np.random.default_rng(SEED).choice(rows, limit, replace=False)


def endless(rows):
    """Yield all rows in random order, then all in another order, and so on without end."""
    random, rows = np.random.default_rng(SEED), rows.copy()
    while True:
        random.shuffle(rows)
        yield from rows


def even_pieces(rows, multiple=1):
    """Return the rows as a matrix of pieces of some 8,192 at most, all as long, because XLA compiles anew for every length.

    The length is a multiple of the number given. What the last piece lacks is filled up with rows from the beginning.
    """
    count = 1 + len(rows) // 8192
    return np.resize(rows, (count, -(-len(rows) // (count * multiple)) * multiple))


def batches(size, *arrays):
    """Return inputs and target, a multiple of size rows, as fit takes them: on TensorFlow a dataset of their batches.

    Of arrays Keras makes a dataset that tunes itself, and TensorFlow 2.21 ends such a one at the tuner's next look only:
    each call, short or long, would take up to twice its time. And it cuts the batches by a Python function, which keeps the
    arrays of many rounds in memory until the garbage collector comes by.
    """
    if not tf:
        return arrays
    with tf.device("CPU"):  # where datasets work, whatever trains
        cut = tf.nest.map_structure(lambda values: tf.reshape(values, (-1, size, *values.shape[1:])), arrays)
        data = tf.data.Dataset.from_tensor_slices(cut)  # Dataset.batch would take up to a tenth of a step's time
    options = tf.data.Options()
    options.autotune.enabled = False
    return (data.with_options(options),)


class SparseAdamW(keras.optimizers.AdamW):
    """AdamW with two changes for embeddings.

    In place of the decay they have a Gaussian prior, which pulls every vector to zero, so that a category of few rows is not
    learned by heart; the longer a vector, the narrower. prior: its slope for each number of a vector, in nats of the loss.

    Of a matrix of 500,000 numbers or more a step updates only the rows that occur in its batch, so that it costs the same at
    any cardinality, if XLA compiles it. Such a matrix has no momentum, which would be stale; its place holds in how many steps each
    row has occurred, for Adam's correction of the start and for the prior of the steps in which it did not. Only
    TensorFlow tells which rows; on other backends, and for smaller matrices, AdamW updates all rows: their vectors have less noise.
    """

    def __init__(self, learning_rate, prior, **settings):
        super().__init__(learning_rate, **settings)
        self.exclude_from_weight_decay(var_names=["bias", "embeddings"])
        self.prior = prior

    def by_rows(self, variable):
        """Return whether only a batch's rows of a variable are updated."""
        return tf is not None and variable.path.startswith("embedding_") and variable.shape[0] * variable.shape[1] >= 500_000

    def add_variable_from_reference(self, reference_variable, name=None, **settings):
        if name == "momentum" and self.by_rows(reference_variable):
            return self.add_variable((reference_variable.shape[0], 1), name="counts")
        return super().add_variable_from_reference(reference_variable, name, **settings)

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        reference = self._trainable_variables[index]
        strength = self.prior * variable.shape[1] if reference.path.startswith("embedding_") else 0
        if not self.by_rows(reference):
            gradient = ops.convert_to_tensor(gradient)
            return super().update_step(gradient + strength * variable if strength else gradient, variable, learning_rate)
        counts, velocities = self._momentums[index].value, self._velocities[index].value
        steps = tf.cast(self.iterations + 1, "float32")
        order = tf.argsort(gradient.indices)
        rows = tf.gather(gradient.indices, order)  # one that comes up twice stands twice, with the same sum and so the same update
        position = tf.cumsum(tf.cast(rows != tf.roll(rows, 1, 0), "int32"))  # begins at 1, or is 0 for all if they are one
        sums = tf.math.unsorted_segment_sum(tf.gather(gradient.values, order), position, tf.size(rows) + 1)
        count, weights, velocity = (tf.gather(values, rows) for values in (counts, variable, velocities))
        count += 1
        gradient = tf.gather(sums, position) + strength * steps / count * weights  # also for the steps in which it did not come up
        velocity += (tf.square(gradient) - velocity) * (1 - self.beta_2)
        weights -= learning_rate * gradient / (tf.sqrt(velocity / (1 - self.beta_2**count)) + self.epsilon)
        for values, new in ((counts, count), (variable, weights), (velocities, velocity)):
            values.scatter_update(tf.IndexedSlices(new, rows))


def can_compile():
    """Return whether XLA works here: by it a step on the flights takes half the time, but a Mac's TensorFlow may lack it."""
    try:  # logarithm and power need libraries that a GPU's set-up may lack
        tf.function(lambda x: tf.argsort(tf.math.log(x) + 0.9**x), jit_compile=True, autograph=False)(tf.ones(2))
    except (tf.errors.OpError, ValueError):
        return False
    return True


def gaussian_loss(target, answers):
    """Return half the log of the mean squared error: the log likelihood of answers whose noise is as large as the error.

    Like the log loss of classes it is in nats, so that one prior on the vectors suits a noisy target and an exact one.
    """
    return ops.log(ops.mean(ops.square(target - answers)) + keras.config.epsilon()) / 2


def train(model, inputs, target, training, validation, recipe, learning_rate):
    """Fit a model on the training rows and return it with its best weights, as the validation rows have it.

    Training runs in cycles; in each the learning rate falls to zero along half a cosine (Loshchilov and Hutter 2017,
    arXiv:1608.03983). Of several cycles only the weights at an end can be kept, because of many rounds one always looks best by
    luck, and the first cycle that ends less than 0.1 % better is the last: noise needs few, exactness many. Of one cycle the best
    round is kept.
    inputs: a list of lists of columns, the categories' row numbers first, of which a share HIDDEN is set to 0; rows are gathered
    for one round at a time. Raises InputError where training diverges.
    """
    batch_size, random = recipe.batch_size, np.random.default_rng(SEED)
    devices = len(keras.distribution.list_devices()) if keras.distribution.distribution() else 1
    if batch_size % devices:
        raise InputError(f"{devices} devices cannot share batches of {batch_size} rows: set BATCH_SIZE to a multiple of their number.")

    def gather_all(pieces, hidden=0.0):
        hide = random.random((*pieces.shape, len(inputs[0])), "float32") < hidden
        share = pieces.shape[1] // PROCESSES
        own = slice(PROCESS * share, (PROCESS + 1) * share)  # of every batch the part of this process
        rows = pieces[:, own].ravel()
        ids, *numbers = [gather(columns, rows) for columns in inputs]
        ids[hide[:, own].reshape(ids.shape)] = 0
        targets = np.repeat(target[rows, None], recipe.members, axis=1)  # every member learns from every row
        return batches(share, (ids, *numbers), targets)

    steps = recipe.round_rows // batch_size * recipe.cycles[0]
    schedule = keras.optimizers.schedules.CosineDecayRestarts(learning_rate, steps, t_mul=2.0)
    prior = 2 * 40 / len(training)  # the slope of 40 / rows times a vector's squared length; 40 was measured
    optimizer = SparseAdamW(schedule, prior, weight_decay=recipe.weight_decay)
    loss = {"regression": gaussian_loss, "binary": "binary_crossentropy", "multiclass": "sparse_categorical_crossentropy"}[TASK]
    watched, shown = ("mse", [keras.metrics.MeanSquaredError("mse")]) if TASK == "regression" else ("loss", [])
    steps_at_once = 1 if keras.backend.backend() == "torch" else 16  # PyTorch takes one
    model.compile(optimizer, loss, metrics=shown, steps_per_execution=steps_at_once, jit_compile=can_compile() if tf else "auto")
    optimizer.build(model.trainable_variables)  # before the first step, which TensorFlow would trace twice
    one_round = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: setattr(model, "stop_training", True))
    stream, held_out = endless(training), even_pieces(sample(validation, 200_000), devices)
    validation_data = gather_all(held_out)
    errors, lowest, best = [], np.inf, None
    for end in np.cumsum(recipe.cycles):
        before = lowest
        while len(errors) < end:
            history = model.fit(
                *gather_all(np.fromiter(stream, training.dtype, recipe.round_rows).reshape(-1, batch_size), HIDDEN),
                batch_size=batch_size // PROCESSES,
                shuffle=False,
                initial_epoch=len(errors),
                epochs=end,  # shown beside the round's number; one_round ends this call long before
                validation_data=validation_data,
                validation_batch_size=held_out.shape[1] // PROCESSES,
                callbacks=[one_round],
                verbose=1 if sys.stdout.isatty() else 2,
            ).history
            errors += history[f"val_{watched}"]
            if (len(errors) == end or len(recipe.cycles) == 1) and errors[-1] <= lowest:
                lowest, kept, best = errors[-1], len(errors), None  # None first, so that there are never two copies
                best = model.get_weights()
        if not errors[-1] < 0.999 * before:
            break
    if best is None or not all(np.isfinite(values).all() for values in [errors, *best]):
        raise InputError("Training diverged: lower LEARNING_RATE, or look for extreme values in the table.")
    print(f"  kept: the weights after epoch {kept}")
    if keras.distribution.distribution():
        keras.distribution.set_distribution(None)
        model = keras.models.clone_model(keras.Model(model.inputs, model.outputs[0]))
    elif errors[-1] == lowest:
        return model  # as nearly always after the one cycle of a large table: to set its weights again would copy them
    model.set_weights(best)
    return model


# Figures and files


def in_pieces(function, rows):
    """Return what a function answers for some rows, asked for one even piece at a time."""
    return np.concatenate([function(piece) for piece in even_pieces(rows)])[: len(rows)]


def answer(model, inputs, rows):
    """Return the mean of the members' answers for some rows, in the units of the network's target."""
    return in_pieces(lambda piece: model.predict_on_batch([gather(columns, piece) for columns in inputs]), rows).mean(axis=1)


def score(target, answers, target_info):
    """Return the figures of a report by name, for the answers on some rows and their target as read_target gives it.

    Regression: root mean squared error in the target's units, with LOG_TARGET that of log1p(target) before it.
    Classes: mean log loss in nats, then the area under the ROC curve (binary, of rows of both classes) or the share of right answers.
    """
    answers = np.asarray(answers, "float64")
    if TASK == "regression":
        error = metrics.root_mean_squared_error(target, answers) * target_info["std"]
        if not LOG_TARGET:
            return {"RMSE": error}
        units = [np.expm1(values * target_info["std"] + target_info["mean"]) for values in (target, answers)]
        return {"RMSE of log1p": error, "RMSE": metrics.root_mean_squared_error(*units)}
    if TASK == "binary":
        second = {"AUC": metrics.roc_auc_score(target, answers)} if len(np.unique(target)) > 1 else {}  # of two test rows, say
    else:
        second = {"accuracy": metrics.accuracy_score(target, answers.argmax(axis=1))}
        answers = answers / answers.sum(axis=1, keepdims=True)  # float32 sums to 1 only roughly
    return {"log loss": metrics.log_loss(target, answers, labels=range(len(target_info["classes"]))), **second}


def fingerprint(*arrays):
    """Return 16 hexadecimal digits for arrays of numbers or text, by their cells and the order of these."""
    digest = hashlib.blake2b(digest_size=8)
    for values in arrays:
        digest.update(pd.util.hash_array(values) if values.dtype == object else np.ascontiguousarray(values))
    return digest.hexdigest()


def fingerprint_embedding(weights, vocabulary):
    """Return 16 hexadecimal digits that bind each vector to its category and count; the order of the rows is free."""
    rows = vocabulary.astype({"category": object}).join(pd.DataFrame(weights))
    return f"{pd.util.hash_pandas_object(rows, index=False).sum():016x}"


def file_stems(columns):
    """Return for each column the name of its files, without the ending: the column's own wherever a file can bear it."""
    stems, folded = {}, [unicodedata.normalize("NFC", column).casefold() for column in columns]
    for column, fold in zip(columns, folded):
        stem = re.sub(r"[^\w .+-]|^\.", lambda found: f"%{ord(found[0]):02X}", column)
        if folded.count(fold) > 1 or len(stem.encode()) > 100:
            stem = f"{stem[:40]}-{fingerprint(np.array([column], object))[:8]}"
        stems[column] = stem
    return stems


@contextmanager
def locked_folder():
    """Yield EMBEDDINGS_DIR, held by this run alone, with an empty folder .saving in it for the files to come."""
    folder = Path(EMBEDDINGS_DIR)
    if PROCESS:  # the first one holds it for all
        yield folder
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"Another run is using {folder}/: wait for its end, or set another EMBEDDINGS_DIR.") from error
        finish_saving(folder)
        read_run(folder)  # a damaged file must not be found after hours of training
        (folder / ".saving").mkdir()
        try:
            yield folder
        finally:
            finish_saving(folder)


def save_run(folder, run):
    """Let the files in .saving, with run.json, take the place of the last run's: all of them or, if stopped, none."""
    new = folder / ".saving"
    run["files"] = sorted({*run.get("files", []), *(file.name for file in new.iterdir())})
    (new / ".run").write_text(json.dumps(run, indent=1, ensure_ascii=False), encoding="utf-8")
    os.rename(new / ".run", new / "run.json")  # from here on the new run counts, and the next start finishes it
    finish_saving(folder)


def finish_saving(folder):
    """Move the files of a complete run from .saving to their places, run.json last, and remove those that are no longer any."""
    new = folder / ".saving"
    if (new / "run.json").exists():
        for name in set(read_run(folder).get("files", [])) - set(read_run(new)["files"]):
            (folder / name).unlink(missing_ok=True)
        for file in sorted(new.iterdir(), key=lambda file: file.name == "run.json"):
            os.replace(file, folder / file.name)
    shutil.rmtree(new, ignore_errors=True)


def read_run(folder):
    """Return what run.json says of the run whose files are in the folder, an empty dict where there is none."""
    file = Path(folder) / "run.json"
    try:
        run = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if run and not {"columns", "rows", "target", "test", "files"} <= run.keys():
            raise ValueError("entries are missing")
        return run if isinstance(run, dict) else {}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{file} is damaged ({error}): remove it and run build_embeddings.py again.") from error


def label(category):
    """Return a category as it is shown on one line: white space folded, at most 40 characters."""
    return " ".join(category.split())[:40] or "(empty)"


def write_projector(folder, embeddings, stems):
    """Write what TensorBoard's Embedding Projector shows: vectors, labels and its configuration; 10,000 rows a column."""
    config = ""
    for column, (weights, vocabulary) in embeddings.items():
        vectors, labels = f"{stems[column]}.vectors.tsv", f"{stems[column]}.labels.tsv"
        np.savetxt(folder / vectors, weights[:10_000], "%.5g", delimiter="\t")
        shown = vocabulary[:10_000].assign(category=vocabulary["category"][:10_000].map(label))
        shown.to_csv(folder / labels, sep="\t", index=False, quoting=csv.QUOTE_NONE)
        name = json.dumps(column, ensure_ascii=False)
        config += f'embeddings {{\n  tensor_name: {name}\n  tensor_path: "{vectors}"\n  metadata_path: "{labels}"\n}}\n'
    (folder / "projector_config.pbtxt").write_text(config, encoding="utf-8")


def print_nearest(weights, vocabulary, column, width):
    """Print the nearest categories, by cosine similarity, of the most frequent ones of a column, last those with few rows ('?')."""
    few = vocabulary["count"] < 20
    names = vocabulary["category"].map(label) + np.where(few, "?", "")
    for row, similarity in enumerate(metrics.pairwise.cosine_similarity(weights[1:4], weights), 1):
        others = [i for i in np.lexsort((-similarity, few))[:6] if i not in (0, row)]  # those with enough rows first
        found = ", ".join(f"{names[i]} {similarity[i]:.2f}" for i in others[:4])
        print(f"  {column if row == 1 else '':<{width}}  {names[row]} ({vocabulary['count'][row]:,} rows): {found}")


@plain_errors()
def main():
    check_columns(CATEGORICAL_COLUMNS, [])
    join_processes()
    keras.utils.set_random_seed(SEED)
    with locked_folder() as folder:
        table, (training, validation, test), target, target_info, rows = load_rows(CATEGORICAL_COLUMNS, [])

        print("Embeddings")
        stems = file_stems(CATEGORICAL_COLUMNS)
        vocabularies = {column: build_vocabulary(table[column], training) for column in CATEGORICAL_COLUMNS}
        width, row_count = max(map(len, CATEGORICAL_COLUMNS)), len(training)
        for column, vocabulary in vocabularies.items():
            cardinality = len(vocabulary) - 1
            doubt = " (hardly a category twice: its vectors will not generalise)" if cardinality > row_count / 4 else ""
            print(f"  {column:<{width}} {cardinality:>7,} categories -> {embedding_dim(cardinality)} dimensions{doubt}")

        with stage(f"Training on {len(CATEGORICAL_COLUMNS)} categorical columns"):
            ids = [row_numbers(table.pop(column), vocabularies[column]) for column in CATEGORICAL_COLUMNS]
            recipe = choose_recipe(row_count, EPOCHS, 600_000)
            model = build_model(vocabularies, target_info, recipe)
            model = train(model, [ids], target, training, validation, recipe, LEARNING_RATE)
        if PROCESS:
            return  # the first one reports and saves

        figures = score(target[test], answer(model, [ids], test), target_info)
        if TASK == "regression":  # what the vectors alone leave of the target's standard deviation
            held_out = sample(validation, 200_000)
            error = metrics.root_mean_squared_error(target[held_out], answer(model, [ids], held_out))
            target_info["unexplained"] = min(1.0, float(error))
        print("Test", ", ".join(f"{name} {value:.4g}" for name, value in figures.items()), TARGET_COLUMN)

        print("Nearest categories (cosine similarity; '?': fewer than 20 training rows)")
        embeddings = {
            column: (model.get_layer(f"embedding_{i}").get_weights()[0], vocabulary)
            for i, (column, vocabulary) in enumerate(vocabularies.items())
        }
        for column, (weights, vocabulary) in embeddings.items():
            if len(vocabulary) > 10:
                print_nearest(weights, vocabulary, column, width)

        columns, new = {}, folder / ".saving"
        for column, (weights, vocabulary) in embeddings.items():
            np.save(new / f"{stems[column]}.npy", weights)
            vocabulary.to_csv(new / f"{stems[column]}.csv", index=False, quoting=csv.QUOTE_NONNUMERIC)
            columns[column] = {"file": stems[column], "fingerprint": fingerprint_embedding(weights, vocabulary)}
        write_projector(new, embeddings, stems)
        save_run(folder, {"columns": columns, "rows": rows, "target": target_info, "test": {ALONE: figures}})
        print("Saved")
        for column, (weights, _) in embeddings.items():
            print(f"  {folder / stems[column]}.npy {weights.shape} and .csv")


if __name__ == "__main__":
    main()
