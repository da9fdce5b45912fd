"""How the network is trained: which rows a round sees, what a step changes, and when training ends."""

import keras
import numpy as np
import pytest
from conftest import made_up


@pytest.fixture
def base(pair):
    return pair(made_up()).base


@pytest.mark.parametrize(("rows", "epochs"), [(20, None), (300, 7), (9_000, None), (300_000, None), (2_500_000, None), (2_500_000, 2)])
def test_every_row_is_seen_once_an_epoch(base, rows, epochs):
    passes, pieces, cycles = base.plan_training(rows, epochs, 3_000_000)
    assert not epochs or sum(cycles) * passes / pieces == epochs
    assert epochs or sum(cycles) * passes / pieces >= 3
    rounds = base.shuffled_rounds(np.arange(7, 7 + rows), passes, pieces)
    first, second = (np.concatenate([next(rounds) for _ in range(pieces)]) for _ in range(2))
    assert len(first) == rows * passes and not np.array_equal(first, second)
    for seen in (first, second):
        assert np.array_equal(np.bincount(seen, minlength=7 + rows)[7:], np.full(rows, passes))


def test_cycles_double(base):
    cycles = base.plan_training(20_000, None, 3_000_000)[2]
    assert np.array_equal(np.diff(np.log2(cycles)), np.ones(len(cycles) - 1)) and sum(cycles) * 20_000 > 1_000_000


def test_a_step_changes_the_rows_of_the_batch_alone(base):
    """One step against NumPy: gradients of a category's rows summed, its share of the prior, no momentum."""
    start, ids, target = np.random.default_rng(0).normal(size=(10_000, 2)).astype("float32"), np.array([4, 1, 4]), np.float32([1, 2, 3])
    layer = base.embedding_layer(0, 9_999, 2, weights=[start])
    inputs = keras.Input((), dtype="int32")
    model = keras.Model(inputs, keras.ops.sum(layer(inputs), axis=1))
    waits = np.arange(1, 10_001).astype("float32")
    model.compile(base.SparseAdamW(0.1, [(0.5, waits)], weight_decay=0.0), "mse")
    model.train_on_batch(ids, target)
    error = 2 * (start[ids].sum(axis=1) - target) / 3
    gradient = np.zeros_like(start)
    for row, slope in zip(ids, error):
        gradient[row] += slope + 0.5 * waits[row] * start[row]
    expected = start - 0.1 * np.sign(gradient)  # after one step the unbiased velocity is the gradient's square
    np.testing.assert_allclose(layer.get_weights()[0], expected, atol=1e-5)


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


def test_a_cycle_that_brings_nothing_is_the_last(pair, capsys, graphs):
    """On noise training ends early; on an exact target it goes on."""
    ended = []
    for noise in (1.0, 0.0):
        random, table = np.random.default_rng(0), made_up(2000)
        table["y"] = noise * random.normal(size=2000) + (1 - noise) * table["c"].str[1:].astype(float)
        pair(table, {"EPOCHS": None}).run_base()
        ended.append(capsys.readouterr().out.count("Epoch"))
    assert ended[0] < ended[1]
