# huey as a queue: a task is put in and carried out, in each of the ways that benches/peers/effectum knows, too, but for batches, which huey
# has not. Told where, whether to ask for syncs, and how many tasks each way has; answers in nanoseconds a task. With `one` behind
# that, they are put in one by one, which a tracer looks at, and nothing else.
import importlib.metadata
import json
import os
import sys
import threading
import time

from huey import SqliteHuey

directory, durable = sys.argv[1], sys.argv[2] == "durable"
tasks, crowd = int(sys.argv[3]), int(sys.argv[4])
options = {"fsync": True} if durable else {}
huey = SqliteHuey(filename=os.path.join(directory, "huey.db"), **options)
now = time.monotonic_ns


@huey.task()
def tell(what):
    return None


def one_by_one(many):
    for number in range(many):
        tell(f"{number:0>100}")


def carry_out(many):
    done = 0
    while done < many:
        task = huey.dequeue()
        if task is None:
            time.sleep(0.001)
            continue
        huey.execute(task)
        done += 1


start = now()
one_by_one(tasks)
one = (now() - start) / tasks
if sys.argv[5:] == ["one"]:
    print("null")
    sys.exit()

share = tasks // crowd
threads = [threading.Thread(target=one_by_one, args=(share,)) for _ in range(crowd)]
start = now()
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
together = (now() - start) / (share * crowd)

waiting = tasks + share * crowd
start = now()
carry_out(waiting)
drain = (now() - start) / waiting

pragma = lambda name: huey.storage.sql(f"pragma {name}", results=True)[0][0]
journal_mode, synchronous = pragma("journal_mode"), pragma("synchronous")

# A process of its own carries out, as its consumer does.
huey.storage.close()
ready, begin = os.pipe()
worker = os.fork()
if worker == 0:
    os.write(begin, b"1")
    carry_out(tasks)
    os._exit(0)
os.read(ready, 1)
start = now()
one_by_one(tasks)
_, status = os.waitpid(worker, 0)
through = (now() - start) / tasks
if status != 0:
    sys.exit(f"the worker ended with {status}")
print(
    json.dumps(
        {
            "version": importlib.metadata.version("huey"),
            "journal_mode": journal_mode,
            "synchronous": synchronous,
            "one": one,
            "together": together,
            "batch": None,
            "drain": drain,
            "through": through,
        }
    )
)
