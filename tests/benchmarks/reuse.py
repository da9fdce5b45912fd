"""Do the vectors make other models better? Four models on four encodings of the same rows of two tables.

    python tests/benchmarks/reuse.py

Trained on 20,000 of the training rows, scored on 5,000 of the test rows that neither script trained on. Numbers are scaled
by their quartiles, missing ones become the median. The encodings of the categorical columns: ordinal codes, one-hot (rows
of 20 training rows or more each), the cross-fitted mean of the target, and embed(frame), all numbers of which are
divided by their common standard deviation; of at most 50 and at most 8 numbers for a category.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from accuracy import SCRIPTS, TOP, edit_copies, run

sys.path.append(str(TOP))

from boosters import split_table
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.metrics import root_mean_squared_error
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, RobustScaler, StandardScaler, TargetEncoder
from tables import read_csv, write_csv

MODELS = {
    "k nearest neighbours": KNeighborsRegressor(10, n_jobs=2),
    "linear (ridge)": Ridge(1.0),
    "random forest": RandomForestRegressor(30, min_samples_leaf=3, max_features=0.5, n_jobs=2, random_state=0),
    "boosting": HistGradientBoostingRegressor(max_iter=300, random_state=0),
}
ENCODERS = {
    "ordinal": OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
    "one-hot": OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=20),
    "target": TargetEncoder(target_type="continuous"),
}
EMBED = """
import pandas as pd, build_embed_model
for part in ("train", "test"):
    build_embed_model.embed(pd.read_pickle(f"{part}.pkl")).to_pickle(f"{part}-embedded.pkl")
"""


def main(seed=0):
    print("| table | numbers of a vector | model | ordinal | one-hot | target | vectors | ratio to the best other |\n|---|--:|---|--:|--:|--:|--:|--:|")
    for table in ("flights", "InstEval"):
        embedded = {}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            settings = write_csv(table, folder)
            train, _, test = split_table(read_csv(settings), seed)
            train, test = train.sample(min(len(train), 20_000), random_state=0), test.sample(min(len(test), 5_000), random_state=0)
            train.to_pickle(folder / "train.pkl"), test.to_pickle(folder / "test.pkl")
            for most in (50, 8):
                edit_copies(folder, {**settings, "SEED": seed, "MAX_EMBEDDING_DIM": most})
                run(folder, SCRIPTS[0])
                run(folder, "-c", EMBED)
                embedded[most] = [pd.read_pickle(folder / f"{part}-embedded.pkl") for part in ("train", "test")]
        target, categorical, numbers = (settings[n] for n in ("TARGET_COLUMN", "CATEGORICAL_COLUMNS", "NUMERICAL_COLUMNS"))
        scaled = make_pipeline(SimpleImputer(strategy="median"), RobustScaler())
        for model_name, model in MODELS.items():
            errors = []
            for encoder_name, encoder in ENCODERS.items():
                if encoder_name == "ordinal" and model_name in ("k nearest neighbours", "linear (ridge)"):
                    encoder = make_pipeline(encoder, StandardScaler())
                if encoder_name == "target":
                    encoder = make_pipeline(encoder, StandardScaler())
                if encoder_name == "one-hot" and model_name == "boosting":
                    encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=20, max_categories=100, sparse_output=False)
                columns = make_column_transformer((encoder, categorical), (scaled, numbers), sparse_threshold=1.0)
                fitted = make_pipeline(columns, model).fit(train[categorical + numbers], train[target])
                errors.append(root_mean_squared_error(test[target], fitted.predict(test[categorical + numbers])))
            for most, (train_embedded, test_embedded) in embedded.items():
                vectors = [column for column in train_embedded if column not in train]
                spread = train_embedded[vectors].to_numpy().std()  # one factor for all: which columns matter more is left as learned
                columns = make_column_transformer((FunctionTransformer(lambda values, spread=spread: values / spread), vectors), (scaled, numbers))
                fitted = make_pipeline(columns, model).fit(train_embedded[vectors + numbers], train[target])
                error = root_mean_squared_error(test[target], fitted.predict(test_embedded[vectors + numbers]))
                print(f"| {table} | {most} | {model_name} |", *(f"{e:.4g} |" for e in [*errors, error]), f"{error / min(errors):.3f} |", flush=True)


if __name__ == "__main__":
    main()
