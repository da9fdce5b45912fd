"""Hide a tenth of a column's categories from training and score the rows that have them: the pair and the boosters.

    python tests/benchmarks/unseen.py

100,000 random flights with a tenth of the aeroplanes or of the destinations hidden, InstEval with a tenth of the students.
All models train on the same rows of the other categories. LightGBM and CatBoost get a hidden category as one that they
never saw, scikit-learn's booster as its target encoder has it.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from accuracy import SCRIPTS, TOP, edit_copies, run

sys.path.append(str(TOP))

from boosters import BOOSTERS, encode_targets, measure, split_table
from tables import read_csv, write_csv

PREDICT = """
import numpy as np, pandas as pd, build_embed_model
np.save("answers.npy", build_embed_model.predict(pd.read_pickle("hidden.pkl")))
"""


def main(seed=0):
    print("| table | hidden | rows scored | model | error |\n|---|---|--:|---|--:|")
    for table, column in (("InstEval", "s"), ("flights", "tailnum"), ("flights", "dest")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            settings = write_csv(table, folder)
            frame, random = read_csv(settings), np.random.default_rng(seed)
            frame = frame.sample(min(len(frame), 100_000), random_state=seed).reset_index(drop=True)
            categories = np.sort(frame[column].unique())
            is_hidden = frame[column].isin(random.choice(categories, len(categories) // 10, replace=False))
            hidden, seen = frame[is_hidden], frame[~is_hidden].reset_index(drop=True)
            seen.to_csv(folder / "seen.csv", index=False)
            hidden.to_pickle(folder / "hidden.pkl")
            edit_copies(folder, {**settings, "DATA_FILE": "seen.csv", "SEED": seed})
            for command in [[SCRIPTS[0]], [SCRIPTS[1]], ["-c", PREDICT]]:
                run(folder, *command)
            train, validation, _ = split_table(seen, seed)
            answers = {"the pair": np.load(folder / "answers.npy")}
            columns = settings["CATEGORICAL_COLUMNS"] + settings["NUMERICAL_COLUMNS"]
            features, targets = [f[columns] for f in (train, validation, hidden)], encode_targets(settings, train, validation, hidden)
            for model, (fit, _) in BOOSTERS.items():
                answers[model] = fit(features, targets, settings, seed)[0]
            for model, answer in answers.items():
                print(f"| {table} | {column} | {len(hidden):,} | {model} | {measure(settings, train, hidden, answer)[1]:.4f} |", flush=True)


if __name__ == "__main__":
    main()
