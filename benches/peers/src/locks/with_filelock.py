# filelock, told on standard input what to do: see talk.rs.
import json
import os
import sys
import time

import filelock

directory = sys.argv[1]
held = {}
now = time.monotonic_ns


def lock(name):
    return filelock.FileLock(os.path.join(directory, name))


def version():
    return filelock.__version__


def cycle(name, times):
    ours, took = lock(name), []
    for _ in range(int(times)):
        start = now()
        ours.acquire()
        ours.release()
        took.append(now() - start)
    return took


def take(name):
    held[name] = lock(name)
    held[name].acquire()
    return now()


def free(name):
    start = now()
    held.pop(name).release()
    return start


verbs = {"version": version, "cycle": cycle, "take": take, "free": free}
for line in iter(sys.stdin.readline, ""):
    verb, *rest = line.split()
    print(json.dumps(verbs[verb](*rest)), flush=True)
