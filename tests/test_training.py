"""How the network is trained: which rows a round sees, what a step changes, and when training ends."""

import gc
import re

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import made_up, report


@pytest.fixture
def base(pair):
    return pair(made_up()).base


@pytest.mark.parametrize(("rows", "epochs"), [(20, None), (300, 7), (9_000, None), (300_000, None), (2_500_000, None), (2_500_000, 2)])
def test_every_row_is_seen_before_any_comes_again(base, rows, epochs):
    recipe = base.choose_recipe(rows, epochs, 3_000_000)
    seen = sum(recipe.cycles) * recipe.round_rows
    assert recipe.round_rows % recipe.batch_size == 0 and recipe.round_rows <= 1_000_000 + recipe.batch_size
    assert seen >= (epochs or 3) * rows and (not epochs or len(recipe.cycles) == 1 and seen < (epochs + 1) * rows)
    stream = base.endless(np.arange(7, 7 + rows))
    first, second = (np.fromiter(stream, int, rows) for _ in range(2))
    assert not np.array_equal(first, second)
    for seen in (first, second):
        assert np.array_equal(np.sort(seen), np.arange(7, 7 + rows))


def test_a_share_of_the_categories_is_hidden_while_training_and_none_on_the_validation_rows(pair, monkeypatch):
    one, seen = pair(made_up()), {"x": [], "validation_data": []}

    def record(self, x, validation_data, **settings):
        for name, data in (("x", x), ("validation_data", validation_data[0])):
            seen[name].append(np.concatenate([ids for (ids,), _ in data]))
        return fit(self, x, validation_data=validation_data, **settings)

    fit = keras.Model.fit
    monkeypatch.setattr(keras.Model, "fit", record)
    one.base.HIDDEN = 0.1
    one.run_base()
    hidden = {name: np.mean(np.concatenate(ids) == 0) for name, ids in seen.items()}
    assert hidden == {"x": pytest.approx(0.1, abs=0.03), "validation_data": 0}


def test_cycles_double(base):
    for rows in (1_000, 3_000, 6_000, 20_000):
        recipe = base.choose_recipe(rows, None, 3_000_000)
        assert np.array_equal(np.diff(np.log2(recipe.cycles)), np.ones(len(recipe.cycles) - 1)), "as CosineDecayRestarts has it"
    assert 1_000_000 < sum(recipe.cycles) * recipe.round_rows < 3_100_000


def test_a_step_changes_the_rows_of_the_batch_alone(base, compiled):
    """Two steps against NumPy: a category's gradients summed, the prior for every step since, no momentum."""
    start, batches = np.random.default_rng(0).normal(size=(250_000, 2)).astype("float32"), [[1, 6, 1], [4, 1, 4]]
    layer = keras.layers.Embedding(250_000, 2, weights=[start], name="embedding_0")
    inputs = keras.Input((), dtype="int32")
    model = keras.Model(inputs, keras.ops.sum(layer(inputs), axis=1))
    model.compile(base.SparseAdamW(0.1, prior=0.25, weight_decay=0.0), "mse", jit_compile=True)
    expected, velocity, count, target = start.astype("float64"), np.zeros((250_000, 2)), np.zeros(250_000), np.float32([1, 2, 3])
    for step, ids in enumerate(batches, 1):
        model.train_on_batch(np.array(ids), target)
        gradient = np.zeros_like(expected)
        np.add.at(gradient, ids, np.repeat(2 * (expected[ids].sum(axis=1) - target)[:, None] / 3, 2, axis=1))
        for row in set(ids):
            count[row] += 1
            gradient[row] += 2 * 0.25 * step / count[row] * expected[row]  # a vector has two numbers
            velocity[row] = 0.999 * velocity[row] + 0.001 * gradient[row] ** 2
            expected[row] -= 0.1 * gradient[row] / (np.sqrt(velocity[row] / (1 - 0.999 ** count[row])) + 1e-7)
    np.testing.assert_allclose(layer.get_weights()[0], expected, atol=2e-4)
    assert model.optimizer._momentums[0].shape == (250_000, 1), "a row's count, which takes the place of its momentum"


@pytest.mark.parametrize(("rows", "multiple"), [(2, 1), (8_192, 1), (20_001, 1), (200_000, 2), (33, 32)])
def test_even_pieces_hold_every_row_and_hardly_one_twice(base, rows, multiple):
    pieces = base.even_pieces(np.arange(7, 7 + rows), multiple)
    assert pieces.shape[1] % multiple == 0 and pieces.shape[1] < 8_192 + multiple
    assert pieces.size - rows < len(pieces) * multiple
    assert np.array_equal(np.unique(pieces), np.arange(7, 7 + rows)) and np.unique(pieces, return_counts=True)[1].max() <= 2


def test_batches_are_the_rows_in_order_and_keep_none_of_them(pair):
    base, ids, numbers, target = pair(made_up()).base, np.arange(24).reshape(12, 2), np.arange(12.0)[:, None], np.arange(12)
    (data,) = base.batches(4, (ids, numbers), target)
    found = [[*inputs, answers] for inputs, answers in data]
    assert [len(answers) for *_, answers in found] == [4, 4, 4]
    for kind, rows in zip(zip(*found), (ids, numbers, target)):
        np.testing.assert_array_equal(np.concatenate(kind), rows)
    gc.collect()
    gc.disable()  # a table of many rounds must not wait for it; 7919 is a width that no other tensor has
    try:
        list(*base.batches(4, (ids, np.zeros((12, 7919))), target))
        assert not [kept for kept in gc.get_objects() if isinstance(kept, tf.Tensor) and "7919" in str(kept.shape)]
    finally:
        gc.enable()


def test_where_xla_is_missing_training_does_without(pair, compiled, monkeypatch):
    one, function = pair(made_up()), tf.function

    def missing(*_):
        raise tf.errors.NotFoundError(None, None, "could not find registered platform")

    assert one.base.can_compile()
    monkeypatch.setattr(tf, "function", lambda *inputs, **settings: missing if settings.get("jit_compile") else function(*inputs, **settings))
    assert not one.base.can_compile()
    one.run_base()
    assert one.matrix("c")[0].shape == (7, 3)


def test_a_vector_with_few_rows_stays_close_to_zero(pair, graphs):
    """Two categories with the same effect, one of them in few rows: the prior keeps that one's vector shorter."""
    random = np.random.default_rng(0)
    table = made_up(3000)
    table["c"] = np.where(random.uniform(size=3000) < 0.004, "rare", random.choice(["often", "other"], 3000))
    table["y"] = 5 * table["c"].isin(["rare", "often"]) + random.normal(size=3000)
    one = pair(table, {"CATEGORICAL_COLUMNS": ["c"], "EPOCHS": 10})
    one.run_base()
    weights, vocabulary = one.matrix("c")
    length = dict(zip(vocabulary["category"], np.linalg.norm(weights, axis=1)))
    assert length["rare"] < length["often"]


def test_each_pair_of_categories_has_a_number_of_its_own(pair):
    one = pair(made_up())
    ids = keras.Input((3,), dtype="int32")
    model = keras.Model(ids, one.model.pair_effects(ids, [(0, 1), (2, 1), (0, 2)], [31, 4, 51], {}))
    rows = keras.Model(ids, model.get_layer("embedding_pairs").input)  # one for each pair of columns
    every = np.indices((31, 4, 51)).reshape(3, -1).T
    taken = [set(column) for column in rows.predict(every, verbose=0).T]
    assert sorted(map(len, taken)) == [31 * 4, 4 * 51, 31 * 51]
    assert set.union(*taken) == set(range(31 * 4 + 4 * 51 + 31 * 51)) == set(range(len(model.get_layer("embedding_pairs").get_weights()[0])))


def test_pairs_that_cannot_be_learned_are_left_out(pair):
    """Shop and weekday come up together again and again; shop and city tell no more than the shop, a ticket comes once."""
    random, one = np.random.default_rng(0), pair(made_up())
    shop, weekday, ticket = random.integers(0, 30, 5000), random.integers(0, 7, 5000), random.integers(0, 4000, 5000)
    pairs = one.model.pairs_that_repeat([shop, weekday, shop % 5, ticket], np.arange(4000))
    assert sorted(map(sorted, pairs)) == [[0, 1], [1, 2]]


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


def test_a_cycle_that_brings_nothing_is_the_last(pair, capsys, graphs):
    """On noise training ends early; on an exact target it goes on."""
    ended = []
    for noise in (True, False):
        random = np.random.default_rng(0)
        c, d = random.integers(0, 40, (2, 400))
        y = random.normal(size=400) if noise else 5 * np.sin(c) + random.normal(size=40)[d]
        pair(pd.DataFrame({"c": c, "d": d, "y": y}), {"EPOCHS": None}).run_base()
        ended.append(max(map(int, re.findall(r"Epoch (\d+)/", capsys.readouterr().out))))
    assert ended[0] < ended[1]


@pytest.mark.parametrize("epochs", [40, None])
def test_the_round_that_is_kept_was_the_best_on_the_validation_rows(pair, capsys, graphs, epochs):
    """Of one cycle any round, of several the last of each."""
    base, random = pair(made_up()).base, np.random.default_rng(0)
    keras.utils.set_random_seed(4)
    ids, rows = random.integers(1, 9, (400, 2)).astype("int32"), np.arange(400)
    target = (random.normal(size=(9, 9))[*ids.T] + random.normal(size=400)).astype("float32")
    recipe = base.choose_recipe(320, epochs, 600_000)
    model = base.build_model({"c": range(9), "d": range(9)}, {}, recipe)
    model = base.train(model, [list(ids.T)], target, rows[:320], rows[320:], recipe, 0.03)
    printed = [float(found) for found in re.findall(r"val_mse: (\S+)", capsys.readouterr().out)]
    last = [printed[end - 1] for end in np.cumsum(recipe.cycles) if end <= len(printed)]
    kept = min(printed if epochs else last)
    assert min(printed) < (printed[-1] if epochs else kept), "else this test says nothing"
    members = model.predict([ids[320:]], verbose=0)
    assert np.mean((members - target[320:, None]) ** 2) == pytest.approx(kept, abs=1e-4)
