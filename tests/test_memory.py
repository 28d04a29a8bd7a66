"""How much a process grows."""

from __future__ import annotations

import subprocess
import sys


def test_ten_thousand_passages_grow_the_process_by_less_than_300_megabytes():
    code = """
import resource, tamis
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
words = "how to read a zip archive without extracting it by means of the standard library of python".split()
def passage(i):
    return " ".join(words[(i * 7 + j * (1 + i % 5)) % len(words)] for j in range(3 + i % 60)) + f" {i}"
reranker = tamis.load(mode="bi-encoder")
reranker.rank("zip", [passage(-1)])
before = resident()
ranking = reranker.rank("how is a zip archive read?", [passage(i) for i in range(10_000)])
status = open("/proc/self/status").read()  # not ru_maxrss, which a child inherits from its parent
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
print(len(ranking), (peak - before) / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, megabytes = done.stdout.split()
    assert int(count) == 10_000
    assert float(megabytes) < 300
