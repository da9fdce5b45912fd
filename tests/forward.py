"""A Keras model's answers computed with NumPy: its graph is read from the model's JSON, its weights layer by layer.

The layers are not written out one after the other, so that the test holds when the network of the scripts is changed.
"""

import json
import re

import numpy as np


def relu(x):
    return np.maximum(x, 0)


def softmax(x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


FUNCTIONS = {
    "linear": lambda x: x,
    "relu": relu,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softmax": softmax,
}
LAYERS = {  # (config, weights, inputs) -> output
    "Embedding": lambda c, w, x: w[0][x],
    "Dense": lambda c, w, x: FUNCTIONS[c["activation"]](x @ w[0] + (w[1] if len(w) > 1 else 0)),
    "EinsumDense": lambda c, w, x: FUNCTIONS[c["activation"]](np.einsum(c["equation"], x, w[0]) + (w[1] if len(w) > 1 else 0)),
    "Concatenate": lambda c, w, x: np.concatenate(x, axis=c["axis"]),
    "Flatten": lambda c, w, x: x.reshape(len(x), -1),
    "RepeatVector": lambda c, w, x: np.repeat(x[:, None], c["n"], axis=1),
    "Rescaling": lambda c, w, x: x * np.float32(c["scale"]) + np.float32(c["offset"]),
    "Cast": lambda c, w, x: x.astype(c["dtype"] if isinstance(c["dtype"], str) else "float32"),
    "Stack": lambda c, w, x: np.stack(x, axis=c["axis"]),
    "Take": lambda c, w, x, i: np.take(x, i, axis=c["axis"]),
    "Sum": lambda c, w, x: np.sum(x, axis=c["axis"], keepdims=c["keepdims"]),
    "Mean": lambda c, w, x: np.mean(x, axis=c["axis"]),
    "GetItem": lambda c, w, x, key: x[tuple(key)],
    "ExpandDims": lambda c, w, x: np.expand_dims(x, c["axis"]),
    "All": lambda c, w, x: np.all(x, axis=c["axis"], keepdims=c["keepdims"]),
    "Repeat": lambda c, w, x: np.repeat(x, c["repeats"], axis=c["axis"]),
    "Clip": lambda c, w, x: np.clip(x, c["x_min"], c["x_max"]),
    "Squeeze": lambda c, w, x: np.squeeze(x, axis=c["axis"]),
    "Activation": lambda c, w, x: FUNCTIONS[c["activation"]](x),
    "Relu": lambda c, w, x: relu(x),
}


def forward(model, inputs, vocabularies):
    """Return a functional model's answers for {input name: array} or [arrays]; text is looked up in {input name: categories}."""
    return run(json.loads(model.to_json())["config"], model, inputs, vocabularies)


def run(config, model, inputs, vocabularies):
    """Compute layer by layer: values begins as the inputs by name and gains every layer's output."""
    names = [layer["name"] for layer in config["layers"] if layer["class_name"] == "InputLayer"]
    names.sort(key=json.dumps(config["input_layers"]).index)  # in the file they stand in any order
    values = dict(inputs if isinstance(inputs, dict) else zip(names, inputs, strict=True))

    def resolve(argument):
        if isinstance(argument, list):
            return [resolve(each) for each in argument]
        if isinstance(argument, dict) and argument["class_name"] == "__keras_tensor__":
            return values[argument["config"]["keras_history"][0]]
        if isinstance(argument, dict) and argument["class_name"] == "__slice__":
            return slice(*(argument["config"][end] for end in ("start", "stop", "step")))
        if isinstance(argument, dict) and argument["class_name"] == "__numpy__":
            return np.array(argument["config"]["value"], argument["config"]["dtype"])
        return argument

    waiting = [layer for layer in config["layers"] if layer["class_name"] != "InputLayer"]
    for _ in range(len(waiting) ** 2):
        if not waiting:
            break
        layer = waiting.pop(0)
        kind, name, node = layer["class_name"], layer["name"], layer["inbound_nodes"][0]["args"]
        try:
            arguments = resolve(node)
        except KeyError:  # an input of this layer is not computed yet
            waiting.append(layer)
            continue
        if kind == "StringLookup":
            words = vocabularies[node[0]["config"]["keras_history"][0]]
            row = {word: i for i, word in enumerate(words) if i}  # row 0 is found by its place, not by its name
            values[name] = np.array([row.get(cell, 0) for cell in arguments[0]])
        elif kind == "IntegerLookup":
            row = {number: i for i, number in enumerate(layer["config"]["vocabulary"], 1)}
            values[name] = np.array([row.get(number, 0) for number in arguments[0]])
        elif kind == "Functional":
            given = arguments[0] if isinstance(arguments[0], list) else arguments
            values[name] = run(layer["config"], model.get_layer(name), given, vocabularies)
        elif kind in LAYERS:
            weights = model.get_layer(name).get_weights() if kind in ("Embedding", "Dense", "EinsumDense") else []
            values[name] = LAYERS[kind](layer["config"], weights, *arguments)
        else:  # operations of keras.ops: TrueDivide is numpy.true_divide
            values[name] = getattr(np, re.sub("(?<!^)(?=[A-Z])", "_", kind).lower())(*arguments)
    return values[np.ravel(np.array(config["output_layers"], object))[0]]
