# dbos: a workflow of so many steps, each of which gives back an item; told where, how its database writes, and how many.
import importlib.metadata
import json
import os
import sqlite3
import sys
import time

directory, mode, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
database = os.path.join(directory, "dbos.sqlite")
if mode != "delete":
    # The file remembers that.
    connection = sqlite3.connect(database)
    connection.execute(f"PRAGMA journal_mode = {mode}")
    connection.close()

from dbos import DBOS  # noqa: E402

dbos = DBOS(
    config={
        "name": "measured",
        "system_database_url": f"sqlite:///{database}",
        "log_level": "CRITICAL",
        "run_admin_server": False,
    }
)
now = time.monotonic_ns


@DBOS.step()
def step(item):
    return item


@DBOS.workflow()
def work(items):
    took = []
    for item in items:
        start = now()
        step(item)
        took.append(now() - start)
    return took


DBOS.launch()
took = work([f"documents/{number:07}.md" for number in range(steps)])
with dbos._sys_db.engine.connect() as connection:
    pragma = lambda name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
    journal_mode, synchronous = pragma("journal_mode"), pragma("synchronous")
    count = connection.exec_driver_sql("SELECT count(*) FROM operation_outputs").scalar()
DBOS.destroy()
print(
    json.dumps(
        {
            "version": importlib.metadata.version("dbos"),
            "journal_mode": journal_mode,
            "synchronous": synchronous,
            "steps": count,
            "took": took,
        }
    )
)
