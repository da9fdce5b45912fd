"""How the network is trained: which rows a round sees, what a step changes, and when training ends."""

import types

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import made_up, report, rows_of


@pytest.fixture
def base(pair):
    return pair(made_up()).base


def record(monkeypatch):
    """Return what a training sees, as it goes on: ids and targets of every fit, and ids of every batch that is predicted."""
    seen, fit, predict = {"ids": [], "targets": [], "predicted": []}, keras.Model.fit, keras.Model.predict_on_batch

    def kept(self, x, **settings):
        seen["ids"].append(np.concatenate([inputs[0] for inputs, *_ in x]))
        seen["targets"].append(np.concatenate([targets for _, targets, _ in x]))
        return fit(self, x=x, **settings)

    def looked_at(self, x):
        seen["predicted"].append(x[0])
        return predict(self, x)

    monkeypatch.setattr(keras.Model, "fit", kept)
    monkeypatch.setattr(keras.Model, "predict_on_batch", looked_at)
    return seen


@pytest.mark.parametrize(("rows", "batch"), [(300, 32), (320, 32), (20, 32)])
def test_an_epoch_shows_every_training_row_once_in_an_order_of_its_own(pair, monkeypatch, rows, batch):
    """Each row is known by its target; what the last batch lacks is filled up with rows seen before."""
    one, seen = pair(made_up(rows).assign(y=range(rows)), {"EPOCHS": 3, "BATCH_SIZE": batch}), record(monkeypatch)
    one.run_base()
    training = np.flatnonzero(one.base.split_rows(rows) == one.base.TRAINING)
    pieces = [targets[:, 0] for targets in seen["targets"]]
    each = len(pieces) // 3  # of an epoch
    orders = [np.concatenate(pieces[each * epoch : each * (epoch + 1)]) for epoch in range(3)]
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])
    for order in orders:
        assert len(order) == -(-len(training) // batch) * batch
        first = order[: len(training)]
        assert np.array_equal(np.argsort(np.argsort(np.sort(first))), np.arange(len(training)))
        np.testing.assert_allclose(np.diff(np.sort(first)), np.diff(training) / training.std(), rtol=1e-3)
        np.testing.assert_array_equal(order[len(training) :], np.resize(first, len(order))[len(training) :])


def test_a_large_table_is_gathered_in_parts_that_make_up_an_epoch(pair, monkeypatch):
    one, rows = pair(made_up()), 2_500_000
    base, gathered = one.base, []
    recipe = base.choose_recipe(rows, None, 900_000)._replace(batch_size=1000)
    data = rows_of(base, target=np.arange(rows), outputs=1, training=np.arange(rows))
    monkeypatch.setattr(base, "feed", lambda inputs, data, batches, members: gathered.append(batches) or {})
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: None)
    ids = pd.DataFrame({"c": np.zeros(rows, "int8")})
    model = keras.Sequential()
    model.optimizer = keras.optimizers.SGD()
    base.fit_epoch(model, {}, [ids], data, recipe, np.random.default_rng(0), 0.005, epoch=1)
    assert len(gathered) == 8 and max(part.size for part in gathered) <= 1_000_000
    assert np.array_equal(np.sort(np.concatenate(gathered).ravel()), np.arange(rows))


def test_rare_categories_are_hidden_more_often_and_none_on_the_validation_rows(pair, monkeypatch):
    """Of a category of n training rows 1 / (n + 1) of the cells, and 1 % of all are forgotten: counted over many epochs."""
    names = [*(f"once {row}" for row in range(100)), *(f"thrice {row // 3}" for row in range(300)), *["often"] * 1600]
    table = pd.DataFrame({"c": np.random.default_rng(0).permutation(names), "d": "same", "y": np.arange(2000.0)})
    one, seen = pair(table, {"EPOCHS": 20, "BATCH_SIZE": 1600}), record(monkeypatch)
    one.run_base()
    part = one.base.split_rows(2000) == one.base.TRAINING
    of_row = table["c"].map(table["c"][part].value_counts())[part].to_numpy()
    order = [np.argsort(np.argsort(targets[:, 0])) for targets in seen["targets"]]  # the target tells the row
    for count in (1, 3):
        share = np.mean([ids[:, 0][of_row[rows] == count] == 0 for ids, rows in zip(seen["ids"], order)])
        assert share == pytest.approx(1 / (1 + count), abs=0.05), count
        forgotten = np.mean([ids[:, 0][of_row[rows] == count] == -1 for ids, rows in zip(seen["ids"], order)])
        assert forgotten == pytest.approx(0.01, abs=0.005), count
    assert np.mean([ids[:, 1] == -1 for ids in seen["ids"]]) == pytest.approx(0.01, abs=0.003)
    assert np.mean([ids[:, 1] == 0 for ids in seen["ids"]]) < 0.003
    unknown = ~table["c"][one.base.split_rows(2000) == one.base.VALIDATION].isin(table["c"][part])
    *validation, test = seen["predicted"]
    assert len(validation) == 20 and {len(ids) for ids in validation} == {len(test)} == {200}
    assert np.mean(np.concatenate(validation)[:, 0] == 0) == pytest.approx(unknown.mean())


@pytest.mark.parametrize("rows", [17, 1_000, 3_000, 6_000, 20_000, 70_000, 300_000, 2_000_000, 40_000_000])
def test_training_has_a_limit(base, rows):
    recipe = base.choose_recipe(rows, None, 900_000)
    assert recipe.falling_epochs <= max(3, 900_000 / rows) and recipe.steady_epochs <= 24
    assert (recipe.steady_epochs == 0) == (rows > 100_000)
    assert base.choose_recipe(rows, 7, 3_000_000)[-3:] == (0, 7, 7)
    base.BATCH_SIZE = 48
    assert base.choose_recipe(rows, None, 3_000_000).batch_size == 48


@pytest.mark.parametrize("falling", [4, 24, 40])
def test_the_rate_falls_along_half_a_cosine(base, falling):
    recipe = base.choose_recipe(100, None, 900)._replace(batch_size=4, steady_epochs=2, falling_epochs=falling)
    rates = np.concatenate([base.rate_factors(epoch, recipe, 100) for epoch in range(3, falling + 3)])
    assert len(rates) >= 24 and rates[0] > 0.99 and rates[-1] < 0.01
    middles = (np.arange(len(rates)) + 0.5) / len(rates)
    np.testing.assert_allclose(rates, 0.5 + 0.5 * np.cos(np.pi * middles))
    assert base.rate_factors(2, recipe, 100).tolist() == [1.0], "a steady epoch is averaged once, at its end"
    assert len(base.rate_factors(3, recipe._replace(falling_epochs=1), 5_000_000)) == 24
    assert len(base.rate_factors(3, recipe._replace(falling_epochs=1), 50_000_000)) == 50, "a million rows each"
    assert len(base.rate_factors(3, recipe._replace(falling_epochs=1), 7)) == 2, "no more than there are steps"


def small_model():
    return keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])


def test_a_steady_epoch_ends_at_the_average_of_its_weights(base):
    """Against NumPy: the average, from the weights before it on, is moved by 1 - exp(-0.7 / steps) in each step."""
    recipe = base.choose_recipe(100, None, 900)._replace(batch_size=10)
    data, ends = np.linspace(1, 2, 100)[:, None], []
    for steps in (True, False):
        model = small_model()
        base.compile_model(model, recipe, 100)
        model.optimizer.weight_decay = 0.0
        base.set_rate(model.optimizer, 0.005, 10, averaged=True)
        if steps:
            weights = [model.train_on_batch(batch, 3 * batch) and model.get_weights()[0].item() for batch in np.split(data, 10)]
        else:
            model.fit(data, 3 * data, batch_size=10, shuffle=False, verbose=0)
            ends.append(model.get_weights()[0].item())
            base.set_rate(model.optimizer, 0.005, 10, averaged=False)
            model.fit(data, 3 * data, batch_size=10, shuffle=False, verbose=0)
            ends.append(model.get_weights()[0].item())
    average = weights[0]  # Keras begins with the weights after the first step
    for weight in weights[1:]:
        average += (1 - np.exp(-0.07)) * (weight - average)
    assert ends[0] == pytest.approx(average, rel=1e-5) and average - 1 < 0.9 * (weights[-1] - 1)
    assert ends[1] - ends[0] > 0.9 * (weights[-1] - 1), "a falling epoch goes all the way"


STEADY = [1, 0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93]


EXACT = [1, 0.9, 0.7, 0.5, 0.45, 0.4, 0.3, 0.2, 0.2, 0.2, 0.2, 0.19, 0.19, 0.19, 0.19, 0.19]


@pytest.mark.parametrize(("steady", "falling", "ends", "kept"), [
    (STEADY, [0.95, 0.92, 0.91, 0.9], 12, 12),
    (STEADY, [0.95, 0.9, 0.92, 0.91], 12, 12),  # an epoch at a high rate without an average was good by luck
    (STEADY, [0.95, 0.94, 0.96, 0.92], 12, 12),  # the fall is judged by itself: half of it is worse than the steady epochs
    (STEADY, [0.9, 0.904, 0.92, 0.9], 12, 12),  # by 0.4 % more it may go on
    (STEADY, [0.9, 0.906, 0.92, 0.9], 10, 8),  # not by 0.7 %
    ([1, 0.95, 0.95, 0.95, 0.95, 0.95, 0.94, 0.93], [0.95, 0.94, 0.92, 0.9], 6, 2),  # nor did the last four of six epochs
    ([], [1, 2, 3, 4], 4, 1),  # a large table
    ([], [1, 0.97, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], 8, 8),  # twice as long, as the second of two epochs lowered it by 3 %
    ([], [1, 0.99, 0.97, 0.96], 4, 4),  # not where it did by 1 %
    (EXACT, [0.19, 0.09, 0.08, 0.07, 0.06, 0.05, 0.04, 0.03], 24, 24),  # twice as long, as the later half of eight lowered it by 60 %
])
def test_when_training_ends_and_which_epoch_is_kept(base, monkeypatch, steady, falling, ends, kept):
    """Each epoch doubles the one weight, which is 1 at the start, so that it tells the epoch that is kept."""
    model, looked, epochs, errors = small_model(), [], [], [*steady, *falling]

    def double(*inputs):
        epochs.append(inputs[-1])
        model.set_weights([2 * model.get_weights()[0]])

    monkeypatch.setattr(base, "fit_epoch", double)
    monkeypatch.setattr(base, "compile_model", lambda *_: None)
    monkeypatch.setattr(base, "predict_rows", lambda model, inputs, rows: looked.append(rows))
    monkeypatch.setattr(base, "mean_error", lambda *_: errors[len(looked) - 1])
    data = rows_of(base, training=[0], validation=[4, 7], target_info={"mean": 0, "std": 1, "log": False})
    recipe = base.choose_recipe(100, None, 900)._replace(steady_epochs=min(8, len(steady)), falling_epochs=4)
    recipe = recipe if steady else recipe._replace(most_epochs=8)
    model, history = base.train(model, {}, [], data, recipe, 0.005)
    assert history == {"errors": errors[:ends], "kept": [kept], "least": errors[kept - 1]}
    assert model.get_weights()[0].item() == 2**kept
    assert epochs == [*range(1, ends + 1)] and looked == [[4, 7]] * ends


def test_epochs_are_averaged_where_that_lowers_the_error(base):
    """A model of one weight whose error is how far that is from 10."""
    model = small_model()
    shape = model.get_weights()[0].shape
    best = [base.Epoch(abs(weight - 10), number, [np.full(shape, weight, "float32")])
            for number, weight in [(7, 9), (3, 12), (4, 13), (9, 6), (5, 14)]]

    def error():
        return abs(model.get_weights()[0].item() - 10)

    # 9 and 12: 10.5; and 13: 11.3, worse; and 6: 9, worse; and 14: 11.7, worse
    assert base.average_epochs(model, best, error) == ([3, 7], 0.5)
    assert model.get_weights()[0].item() == 10.5
    assert base.average_epochs(model, best[:1], error) == ([7], 1)
    assert model.get_weights()[0].item() == 9
    same, errors = np.full(shape, 0.94708097, "float32"), iter([-1, -2])  # a third of three times this is not the same in float32
    assert base.average_epochs(model, [base.Epoch(0, number, [same]) for number in (1, 2, 3)], lambda: next(errors)) == ([1, 2, 3], -2)
    assert model.get_weights()[0].item() == same.item(), "vectors that are kept as they are stay the same to the last bit"


@pytest.mark.parametrize(("steady", "averaged", "kept"), [(6, 1, [4]), (6, 2, [4, 5]), (6, 9, [3, 4, 5]), (0, 9, [6])])
def test_which_epochs_may_be_averaged(base, monkeypatch, steady, averaged, kept):
    """The weight is the number of the epoch, and of any average the error is lower; of a large table the best epoch alone is in memory."""
    model = small_model()
    errors = [0.9, 0.8, 0.7, 0.4, 0.5, 0.3] if steady == 0 else [0.9, 0.8, 0.7, 0.4, 0.5, 0.9]
    monkeypatch.setattr(base, "fit_epoch", lambda *inputs: model.set_weights([np.full((1, 1), inputs[-1], "float32")]))
    monkeypatch.setattr(base, "compile_model", lambda *_: None)
    monkeypatch.setattr(base, "predict_rows", lambda *_: None)
    looks = []
    monkeypatch.setattr(base, "mean_error", lambda *_: looks.append(0) or [*errors, 0.29, 0.28, *[1] * 9][len(looks) - 1])
    monkeypatch.setattr(base, "adapt_recipe", lambda recipe, errors: recipe)
    data = rows_of(base, training=[0], validation=[4, 7], target_info={"mean": 0, "std": 1, "log": False})
    recipe = base.choose_recipe(100, None, 900)._replace(steady_epochs=steady, falling_epochs=6 - steady)
    model, history = base.train(model, {}, [], data, recipe, 0.005, averaged=averaged)
    assert history["kept"] == kept and model.get_weights()[0].item() == np.mean(kept)


def test_an_error_of_zero_gains_nothing(base):
    recipe = base.choose_recipe(100, None, 900)
    assert base.adapt_recipe(recipe, [0.5, 0.1, 0, 0, 0, 0, 0, 0]).falling_epochs == 0, "training ends"


def test_epochs_that_the_user_set_stay(base):
    recipe = base.choose_recipe(200_000, 4, 3_000_000)
    assert base.adapt_recipe(recipe, [1, 0.5]) == recipe
    recipe = base.choose_recipe(200_000, None, 3_000_000)
    assert base.adapt_recipe(recipe, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]).falling_epochs == 30 > recipe.falling_epochs
    recipe = base.choose_recipe(2_000_000, None, 3_000_000)
    assert base.adapt_recipe(recipe, [1]) == recipe, "one epoch says nothing"


def test_an_epoch_has_the_rates_that_fall_and_an_average_while_they_are_steady(base, monkeypatch):
    model, rates, averaged = small_model(), [], []
    model.compile(keras.optimizers.AdamW(use_ema=True))
    monkeypatch.setattr(model, "fit", lambda **_: rates.append(float(model.optimizer.learning_rate)) or averaged.append(model.optimizer.use_ema))
    data = rows_of(base, training=np.arange(400), target=np.arange(400.0))
    recipe = base.choose_recipe(100, None, 900)._replace(batch_size=4, steady_epochs=2, falling_epochs=4)
    for epoch in range(1, 7):
        base.fit_epoch(model, {}, [pd.DataFrame({"c": np.zeros(400, "int8")})], data, recipe, np.random.default_rng(0), 0.005, epoch)
    assert averaged == [True] * 2 + [False] * 24 and rates[:2] == pytest.approx([0.005] * 2)
    assert np.all(np.diff(rates[1:]) < 0) and rates[-1] < 0.0003


def two_matrices(base):
    """Return a model of two embedding layers, a matrix just below the size that counts as large and one just of it."""
    inputs, rows = keras.Input((2,), dtype="int32"), rows_of(base, training=range(100))
    small, large = (base.embedding(np.ones((size, 50), "float32"), 2_000, rows, f"embedding_{size}") for size in (9_999, 10_000))
    return keras.Model(inputs, keras.ops.sum(small(inputs[:, 0]) + large(inputs[:, 1]), axis=1, keepdims=True)), small, large


def test_only_a_large_matrix_is_left_to_sgd(base):
    """The smaller one has AdamW, and its prior in its layer; without a large one there is AdamW alone."""
    model, small, large = two_matrices(base)
    recipe = base.choose_recipe(100, 3, 900)
    base.compile_model(model, recipe, 100)
    assert {type(each).__name__: len(each.variables) for each in model.optimizer.optimizers} == {"AdamW": 4, "SGD": 2}
    assert small.embeddings_regularizer.l2 == pytest.approx(40 * 50 / 100) and large.embeddings_regularizer is None
    alone = keras.Model(model.inputs, small(model.inputs[0][:, 0]))
    base.compile_model(alone, recipe, 100)
    assert type(alone.optimizer) is keras.optimizers.AdamW


def test_a_step_changes_the_rows_of_the_batch_alone_where_a_matrix_is_large(base, compiled):
    """One step against NumPy: a row moves by the learning rate times the sum of its cells' gradients; AdamW moves every row."""
    model, small, large = two_matrices(base)
    batch, target = np.array([[1, 1], [6, 6], [1, 1]] * 10 + [[7, 7]] * 2), np.full((32, 1), 3.0, "float32")
    base.compile_model(model, base.choose_recipe(100, 3, 900), 100)
    base.set_rate(model.optimizer, 0.005, 32, averaged=False)
    model.train_on_batch(batch, target)
    # gaussian_loss: its slope for an answer is (answer - target) / (32 * mean squared error), and each answer is 50 + 50
    slope = (100 - 3) / (32 * 97.0**2)
    expected = np.ones((10_000, 50))
    for row, cells in ((1, 20), (6, 10), (7, 2)):
        expected[row] -= 0.005 * 32 * cells * slope
    np.testing.assert_allclose(large.get_weights()[0], expected, rtol=1e-6)
    assert (small.get_weights()[0] != 1).all(), "the prior moves all rows"


def test_a_batch_that_the_devices_cannot_share_is_refused(base, monkeypatch):
    monkeypatch.setattr(keras.distribution, "distribution", object)
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["cpu:0", "cpu:1", "cpu:2"])
    recipe = base.choose_recipe(100, 3, 900)
    base.compile_model(small_model(), recipe._replace(batch_size=33), 100)
    with pytest.raises(base.InputError, match="3 devices cannot share batches of 32 rows: set BATCH_SIZE"):
        base.compile_model(small_model(), recipe._replace(batch_size=32), 100)


@pytest.mark.parametrize("rows", [1, 99, 100, 101, 250])
def test_predictions_come_in_batches_of_one_size_and_in_the_order_of_the_rows(base, rows):
    sizes = set()
    found = base.in_batches(lambda batch: sizes.add(len(batch)) or 10.0 * batch, np.arange(rows), limit=100)
    np.testing.assert_array_equal(found, 10.0 * np.arange(rows))
    assert sizes == {min(rows, 100)}, "XLA compiles anew for each size"


def test_batches_are_the_rows_in_order(base):
    ids, numbers = pd.DataFrame(np.arange(24).reshape(12, 2)), pd.DataFrame(np.arange(12.0))
    order = np.random.default_rng(0).permutation(12).reshape(3, 4)
    data = types.SimpleNamespace(target=np.arange(12), weights=np.arange(12) / 10)
    batches = list(base.feed(base.gather([ids, numbers], order), data, order, members=2)["x"])
    assert len(batches) == 3
    for rows, (inputs, targets, weights) in zip(order, batches):
        np.testing.assert_array_equal(weights, rows[:, None] / 10)
        np.testing.assert_array_equal(inputs[0], ids.iloc[rows])
        np.testing.assert_array_equal(inputs[1], numbers.iloc[rows])
        np.testing.assert_array_equal(targets, np.stack([rows, rows], axis=1))


def test_a_step_is_traced_once(pair, graphs, monkeypatch):
    """TensorFlow traces a function anew where its first trace made variables: seconds in which a person waits."""
    traced, step = [], keras.Model.train_step
    monkeypatch.setattr(keras.Model, "train_step", lambda model, data: traced.append(model) or step(model, data))
    pair(made_up(), {"EPOCHS": 2}).run_base()
    assert len(traced) == 1


def test_where_xla_is_missing_training_does_without(pair, compiled, monkeypatch):
    one, function = pair(made_up()), tf.function

    def missing(*_):
        raise tf.errors.NotFoundError(None, None, "could not find registered platform")

    assert one.base.execution()["jit_compile"]
    monkeypatch.setattr(tf, "function", lambda *inputs, **settings: missing if settings.get("jit_compile") else function(*inputs, **settings))
    assert not one.base.execution()["jit_compile"]
    one.run_base()
    assert one.matrix("c")[0].shape == (7, 3)


def test_the_prior_keeps_vectors_of_few_rows_close_to_zero(pair, graphs):
    """Fifty categories of four rows or so each, which do nothing, beside two of many rows that do: with and without the prior."""
    random = np.random.default_rng(0)
    names = np.where(random.uniform(size=2000) < 0.1, random.integers(0, 50, 2000).astype(str), random.choice(["often", "other"], 2000))
    table = pd.DataFrame({"c": names, "y": 2.0 * (names == "often") + random.normal(size=2000)})
    one = pair(table, {"CATEGORICAL_COLUMNS": ["c"], "EPOCHS": 20})
    lengths = {}
    for one.base.PRIOR in (40, 0):
        one.run_base()
        length = np.linalg.norm(one.matrix("c")[0], axis=1)
        lengths[one.base.PRIOR] = length[3:].mean() / length[1:3].mean()
    assert lengths[40] < 0.5 < lengths[0], lengths


def test_effects_of_categories_with_few_rows_are_found(pair, capsys, graphs):
    """Of four rows each, where x says more than they do: what a prior that grows with the vectors' length kept at zero."""
    random = np.random.default_rng(0)
    code, effects, x = random.integers(0, 1500, 6000), random.normal(size=1500), random.normal(size=6000)
    y = effects[code] + 3 * x + 0.1 * random.normal(size=6000)
    table = pd.DataFrame({"c": [f"k{i}" for i in code], "x": x, "y": y})
    pair(table, {"CATEGORICAL_COLUMNS": ["c"], "EPOCHS": 2}, {"EPOCHS": 8}).run()
    assert report(capsys.readouterr().out)["embeddings + numerical columns"][0] < 0.6, "without the effects it is 1"


def test_each_pair_of_categories_has_a_number_of_its_own(pair):
    one = pair(made_up())
    ids = keras.Input((3,), dtype="int32")
    table = rows_of(one.base, outputs=1, training=range(100))
    model = keras.Model(ids, one.model.pair_effects(ids, [(0, 1), (2, 1), (0, 2)], [31, 4, 51], table, unit=1))
    rows = keras.Model(ids, model.get_layer("embedding_pairs").input)  # one for each pair of columns
    every = np.indices((31, 4, 51)).reshape(3, -1).T
    taken = [set(column) for column in rows.predict(every, verbose=0).T]
    assert sorted(map(len, taken)) == [31 * 4, 4 * 51, 31 * 51]
    assert set.union(*taken) == set(range(31 * 4 + 4 * 51 + 31 * 51)) == set(range(len(model.get_layer("embedding_pairs").get_weights()[0])))


def test_pairs_have_a_prior_however_many_classes_there_are(pair):
    one = pair(made_up())
    ids = keras.Input((2,), dtype="int32")
    for outputs in (1, 3, 20):
        table = rows_of(one.base, outputs=outputs, training=range(100))
        effects = one.model.pair_effects(ids, [(0, 1)], [1000, 3001], table, unit=1)
        layer = keras.Model(ids, effects).get_layer("embedding_pairs")
        assert layer.embeddings_regularizer.l2 == pytest.approx(0.6) and layer.get_weights()[0].shape[1] == outputs


def test_pairs_that_cannot_be_learned_are_left_out(pair):
    """Shop and weekday come up together again and again; shop and city tell no more than the shop, a ticket comes once."""
    random, one = np.random.default_rng(0), pair(made_up())
    shop, weekday, ticket = random.integers(0, 30, 5000), random.integers(0, 7, 5000), random.integers(0, 4000, 5000)
    ids = pd.DataFrame({"shop": shop, "weekday": weekday, "city": shop % 5, "ticket": ticket})
    data = rows_of(one.base, outputs=1, training=np.arange(4000))
    pairs = one.model.pairs_that_repeat(ids, data)
    assert sorted(sorted(ids.columns[[*pair]]) for pair in pairs) == [["city", "weekday"], ["shop", "weekday"]]


def test_what_two_categories_do_together_is_found(pair, capsys, graphs):
    """A target that neither category says anything of alone: the error must be far below that of the best sum of both."""
    random = np.random.default_rng(0)
    c, d, x = random.integers(0, 20, (3, 6000))
    y = random.normal(size=(20, 20))[c, d] + random.normal(scale=0.1, size=6000)
    one = pair(pd.DataFrame({"c": c, "d": d, "x": x, "y": y}), {"EPOCHS": 2}, {"EPOCHS": 9}).run()
    both = pd.get_dummies(pd.DataFrame({"c": c, "d": d}).astype(str), dtype=float)
    train, test = one.base.split_rows(6000) == one.base.TRAINING, one.test_rows()
    best, *_ = np.linalg.lstsq(both[train], y[train], rcond=None)
    error = report(capsys.readouterr().out)["embeddings + numerical columns"][0]
    assert error < 0.7 * np.sqrt(np.mean((both[test] @ best - y[test]) ** 2))


def test_training_ends_where_it_brings_nothing(pair, graphs):
    """On noise it ends in the steady epochs, on an exact target the rate falls."""
    ended = []
    for noise in (True, False):
        random = np.random.default_rng(0)
        c, d = random.integers(0, 40, (2, 400))
        y = random.normal(size=400) if noise else 5 * np.sin(c) + random.normal(size=40)[d]
        one = pair(pd.DataFrame({"c": c, "d": d, "y": y}), {"EPOCHS": None})
        one.run_base()
        ended.append(len(one.base.read_look(one.embeddings)["training"][0]["errors"]))
    recipe = one.base.choose_recipe(320, None, 900_000)
    assert ended[0] < recipe.steady_epochs < ended[1]


@pytest.mark.parametrize("epochs", [40, None])
def test_what_is_kept_was_the_best_on_the_validation_rows(pair, capsys, graphs, epochs, monkeypatch):
    base, random = pair(made_up(), {"SEED": 1}).base, np.random.default_rng(0)
    keras.utils.set_random_seed(4)
    ids, numbers = pd.DataFrame(random.integers(1, 9, (400, 2)).astype("int32")), np.arange(400)
    target = (random.normal(size=(9, 9))[*ids.to_numpy().T] + random.normal(size=400, scale=10 if epochs else 2)).astype("float32")
    parts = {"training": numbers[:320], "validation": numbers[320:]}
    rows = rows_of(base, target=target, target_info={"std": 1, "log": False}, outputs=1, **parts)
    recipe = base.choose_recipe(320, epochs, 900_000)
    model = base.build_model({"c": range(9), "d": range(9)}, rows, recipe)
    seen, error = [], base.mean_error
    monkeypatch.setattr(base, "mean_error", lambda *inputs: seen.append(error(*inputs)) or seen[-1])
    vocabularies = dict.fromkeys(ids, pd.DataFrame({"count": [0, *[35] * 8]}))
    model, history = base.train(model, vocabularies, [ids], rows, recipe, 0.03, averaged=20)
    count, least = len(history["errors"]), min(seen)
    assert history == {"errors": seen[:count], "kept": history["kept"], "least": least}
    assert least < seen[count - 1], "else this test says nothing"
    if epochs:  # all in a falling rate: the best one
        assert len(seen) == count == 40 and history["kept"] == [seen.index(least) + 1]
    else:
        assert least < min(seen[:count]) and len(history["kept"]) > 1
    assert f"{', '.join(map(str, history['kept']))}, validation RMSE {least**0.5:.4}" in capsys.readouterr().out
    members = model.predict([ids[320:]], verbose=0)
    assert np.mean((members.mean(axis=1) - target[320:]) ** 2) == pytest.approx(least, abs=1e-4)


def means_of(one, table, target, outputs=1):
    """Return target_means of the columns of a frame of ids, with the rows 0 to 99 as the training rows."""
    data = rows_of(one.base, target=np.array(target), outputs=outputs, training=np.arange(100))
    return one.model.target_means(table, table.iloc[:, :0], [(0, 1)], data)


def ids_of_many_categories(rows=150):
    random = np.random.default_rng(0)
    return pd.DataFrame({"c": random.integers(1, 30, rows), "d": random.integers(1, 4, rows)}), random.normal(size=rows)


def test_no_row_sees_its_own_target_in_the_means(pair):
    """Where two rows of different categories swap their targets, both keep their means, and their neighbours' move."""
    one, (ids, target) = pair(made_up()), ids_of_many_categories()
    before, moved = means_of(one, ids, target)[0], 0
    for row in range(0, 100, 5):
        other = next(i for i in range(100) if ids["c"][i] != ids["c"][row])
        swapped = target.copy()
        swapped[[row, other]] = target[[other, row]]
        after = means_of(one, ids, swapped)[0]
        np.testing.assert_allclose(after.iloc[[row, other]], before.iloc[[row, other]], atol=1e-6)
        moved += np.abs(after - before).to_numpy().max() > 0.01
    assert moved > 15, "the others of their categories see it"


@pytest.mark.parametrize(("task", "outputs"), [("regression", 1), ("binary", 1), ("multiclass", 3)])
def test_target_means_against_pandas(pair, task, outputs):
    """Of rows that are not for training: the mean of five means, each without a fold, drawn to that of all by ten rows."""
    one, (ids, target) = pair(made_up()), ids_of_many_categories()
    one.base.TASK = task
    if task == "binary":
        target = (target > 0.5).astype(int)
    if outputs > 1:
        target = np.digitize(target, [-0.5, 0.5])
    means, tables = means_of(one, ids, target, outputs)
    assert [*tables.means] == [(0,), (0, 1)], "d has too few categories for a mean of its own"
    values = np.eye(3)[target] if outputs > 1 else target[:, None]
    of_all = values[:100].mean(axis=0)
    unit = (lambda mean: mean) if task == "regression" else (lambda share: np.log(share) - np.log(1 - share))
    fold = one.base.generator("folds").permutation(100) % 5
    for row in (3, 120, 149):
        for group, columns in enumerate((["c"], ["c", "d"])):
            alike = (ids.loc[:99, columns] == ids.loc[row, columns]).all(axis=1).to_numpy()
            folds = [fold[row]] if row < 100 else range(5)
            others = [values[:100][alike & (fold != k)] for k in folds]
            each = [unit(np.vstack([rows, [of_all] * 10]).mean(axis=0)) - unit(of_all) for rows in others]
            found = means.iloc[row, group * outputs : (group + 1) * outputs]
            np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-4, atol=1e-6)


def test_a_forgotten_cell_is_row_0_and_has_no_means(pair, monkeypatch):
    """Not of its column, nor of a pair with it, nor of any number; those of the other column count as before."""
    random, seen = np.random.default_rng(0), []
    c, d = random.integers(0, 30, 3000), random.integers(0, 25, 3000)
    one = pair(pd.DataFrame({"c": c, "d": d, "x": random.normal(size=3000), "y": c + d}), {"BATCH_SIZE": 512})
    raw_model = one.model.raw_model
    monkeypatch.setattr(one.model, "raw_model", lambda model, *rest: (seen.append((model, rest[1])), raw_model(model, *rest))[1])
    one.run()
    network, tables = seen[0]
    assert [*tables.means] == [(0,), (1,), (2,), (0, 1)]

    def answer(cell, *means):
        return network([np.array([[cell, 7]]), np.zeros((1, 1)), np.array([means])]).numpy().round(5).tolist()

    assert answer(-1, 9, 2, 5, 9) == answer(0, 0, 2, 0, 0) != answer(0, 9, 2, 0, 9)
    assert answer(-1, 0, 3, 0, 0) != answer(-1, 0, 2, 0, 0) and answer(0, 0, 2, 5, 0) != answer(0, 0, 2, 6, 0)


def planted_bins(rows=4000):
    """Return ids, numbers and a target that c and x explain together alone, and z a little; d and v say nothing of it."""
    random = np.random.default_rng(0)
    ids = pd.DataFrame({"c": random.integers(1, 9, rows), "d": random.integers(1, 9, rows)})
    numbers = pd.DataFrame({"x": random.normal(size=rows), "v": random.normal(size=rows), "z": random.normal(size=rows)}, dtype="float32")
    signal = np.where(ids["c"] % 2, 1, -1) * np.sign(numbers["x"]) + 0.1 * numbers["z"]
    return ids, numbers, (signal + random.normal(scale=0.5, size=rows)).to_numpy()


def test_a_pair_with_a_number_is_chosen_where_they_interact(pair):
    """Of ten pairs the one that says something; of a target of chance none, though the means of a few rows follow their own targets."""
    one, (ids, numbers, target) = pair(made_up()), planted_bins()
    for planted in (True, False):
        data = rows_of(one.base, target=target if planted else np.random.default_rng(1).permutation(target), outputs=1, training=np.arange(3500))
        means, tables = one.model.target_means(ids, numbers, [], data)
        assert [*tables.means] == [(2,), (3,), (4,), *[(0, 2)] * planted], "the numbers are the columns 2 to 4"
    own = data.target[:3500] - data.target[:3500].mean()
    assert abs(np.corrcoef(own, means.iloc[:3500].sum(axis=1))[0, 1]) < 0.1, "no row sees its own target"
    cells = one.model.to_cells([ids, numbers], tables.edges)[:3500]
    rows = pd.Series(own).groupby(cells[:, 2] * 100 + cells[:, 0]).transform("mean")
    assert np.corrcoef(own, rows)[0, 1] > 0.3, "as it would if means held it"


def test_what_means_explain_counts_rows_by_their_weight_and_no_chance(pair):
    """As many copies of a row are a weight; means that go against the target, as cross-fitted ones of chance do, explain nothing."""
    random, one = np.random.default_rng(0), pair(made_up())
    target, weights = random.normal(size=(500, 1)), random.integers(1, 6, (500, 1))
    means = 0.5 * target + random.normal(size=(500, 1))
    copies = np.corrcoef(np.repeat(means, weights[:, 0]), np.repeat(target, weights[:, 0]))[0, 1]
    assert one.model.explained_variance(means, target, weights) == pytest.approx(copies**2) != pytest.approx(np.corrcoef(means.T, target.T)[0, 1] ** 2)
    assert one.model.explained_variance(-means, target, weights) == 0


def test_bins_and_their_means_are_the_same_in_the_saved_model(pair):
    """The bin of a number: so many of the 65 edges are not above it, at least 1; 0 if missing, -1 beside an unknown category."""
    one, (ids, numbers, target) = pair(made_up()), planted_bins()
    numbers = numbers.assign(v=numbers["v"].round(1))
    means, tables = one.model.target_means(ids, numbers, [], rows_of(one.base, target=target, outputs=1, training=np.arange(3500)))
    edges = tables.edges
    assert edges.shape == (3, 65) and [*np.sort(numbers["v"][:3500].unique())[[0, -1]]] == [*edges[1, [0, -1]]]
    hard = [np.nan, -np.inf, np.inf, 0, *edges[1], *np.nextafter(edges[1][edges[1] != 0], -np.inf)]
    some = pd.DataFrame({"x": hard, "v": hard, "z": hard}, dtype="float32")
    new = pd.DataFrame({"c": np.arange(len(hard)) % 10, "d": 1}, dtype="int32")
    cells = one.model.to_cells([new, some], edges)
    for column, name in enumerate(some):
        bins = [max(1, sum(edge <= value for edge in edges[column].tolist())) for value in some[name].tolist()]
        bins[0] = 0  # which is missing
        assert [*cells[:, 2 + column]] == [-1 if row % 10 == 0 else bins[row] for row in range(len(hard))]
    inputs = keras.Input((2,), dtype="int32"), keras.Input((3,))
    network = keras.Model(inputs, one.model.means_layer(inputs, tables))
    looked_up = one.model.look_up_means([new, some], tables)
    np.testing.assert_array_equal(network.predict([new.to_numpy(), some.to_numpy()], verbose=0), looked_up)
    assert looked_up.nunique().min() > 3 and not looked_up[::10].to_numpy().any()
    for row in range(3600, 3700):  # which are not for training; the mean of four folds of five is near that of all
        alike = target[:3500][(numbers["v"][:3500] == numbers["v"][row]).to_numpy()]
        if 200 > len(alike) > 20 and abs(numbers["v"][row]) < 1:  # where each value has a bin of its own
            of_all = target[:3500].mean()
            assert means.iloc[row, 1] == pytest.approx((alike.sum() - len(alike) * of_all) / (len(alike) + 10), abs=0.03)


def test_what_a_category_and_a_number_do_together_is_found(pair, capsys, graphs):
    """Fifty values of a number, ten shops, and for each of the five hundred pairs an effect of its own."""
    random = np.random.default_rng(0)
    shop, day, other = random.integers(0, 10, 9000), random.integers(0, 50, 9000), random.integers(0, 9, 9000)
    y = random.normal(size=(10, 50))[shop, day] + 0.3 * random.normal(size=9000)
    one = pair(pd.DataFrame({"c": shop, "d": other, "x": day, "y": y}), {"EPOCHS": 2}, {"EPOCHS": 9}).run()
    assert report(capsys.readouterr().out)["embeddings + numerical columns"][0] < 0.75, "nothing learned is 1.04, all of it 0.3"


def test_numbers_speak_for_an_unknown_category(pair, graphs):
    """y is the category's effect, and x hints at it: of a category that training never saw, x is all there is to go by."""
    random = np.random.default_rng(0)
    code, effects = random.integers(0, 60, 3000), 3 * random.normal(size=80)
    table = pd.DataFrame({"c": [f"k{i}" for i in code], "d": "same", "x": effects[code] + 0.3 * random.normal(size=3000), "y": effects[code]})
    one = pair(table, {"EPOCHS": 3}, {"EPOCHS": 12}).run()
    new = random.integers(60, 80, 500)
    answers = one.predict(pd.DataFrame({"c": [f"k{i}" for i in new], "d": "same", "x": effects[new]}))
    assert np.sqrt(np.mean((answers - effects[new]) ** 2)) < 0.5 * effects[new].std()
