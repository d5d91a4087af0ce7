"""A process that creates objects: prints `ready`, waits for a line, and prints the names that it created."""

import sys

from nearcast.storage.open_storage import open_storage

url, count, number = sys.argv[1], int(sys.argv[2]), sys.argv[3]
storage = open_storage(url)
storage.stat("warm")
print("ready", flush=True)
sys.stdin.readline()
for i in range(count):
    if storage.create(f"race/{i}", f"process {number}".encode()):
        print(f"race/{i}", flush=True)
