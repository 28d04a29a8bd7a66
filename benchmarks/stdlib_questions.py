"""A collection far from what the shipped models were trained on: questions about Python's standard library.

    python benchmarks/stdlib_questions.py FOLDER
    tamis eval embedded MiniLM=embedded::mode=bi-encoder --data FOLDER --split test

writes it in BEIR's layout: the passages are the docstrings of the Python that runs it (`cookbook/stdlib_corpus.py`).
The questions are the demo's first five and others in a user's words; which entries answer them was settled from the
library's documentation, before any model had seen them. No weight and no option was chosen by them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cookbook"))

from stdlib_corpus import read_corpus

QUESTIONS: dict[str, tuple[str, ...]] = {
    "How do I read one file inside a zip archive without extracting the whole archive?": (
        "zipfile.ZipFile.open",
        "zipfile.ZipFile.read",
    ),
    "How can I remember the results of a slow function so that they are not computed twice?": (
        "functools.cache",
        "functools.lru_cache",
    ),
    "I have several lists that are sorted already. How do I go through all of them in order?": ("heapq.merge",),
    "How do I show which lines changed between two versions of a text?": (
        "difflib.unified_diff",
        "difflib.context_diff",
        "difflib.ndiff",
        "difflib.Differ",
        "difflib.Differ.compare",
    ),
    "I need a scratch folder that is removed by itself when I am done with it.": ("tempfile.TemporaryDirectory",),
    "split a shell command line into its arguments": ("shlex.split",),
    "how to copy a directory tree recursively": ("shutil.copytree",),
    "delete a folder and everything in it": ("shutil.rmtree",),
    "where is an executable located on the search path": ("shutil.which",),
    "insert into a sorted list and keep it sorted": (
        "bisect.insort_right",
        "bisect.insort_left",
    ),
    "count how often each element occurs": ("collections.Counter",),
    "most frequent items of a counter": ("collections.Counter.most_common",),
    "queue with fast appends and pops at both ends": ("collections.deque",),
    "wrap long paragraphs of text to a given width": (
        "textwrap.wrap",
        "textwrap.fill",
    ),
    "remove common leading whitespace from every line of a text": ("textwrap.dedent",),
    "parse command line options of my program": (
        "argparse",
        "argparse.ArgumentParser",
        "optparse",
        "getopt",
        "optparse.OptionParser",
    ),
    "turn a JSON string into Python objects": ("json.loads",),
    "pretty print a nested data structure": (
        "pprint.pprint",
        "pprint.pformat",
        "pprint.pp",
    ),
    "secure random token for password reset links": (
        "secrets.token_urlsafe",
        "secrets.token_hex",
        "secrets.token_bytes",
        "secrets",
    ),
    "measure how long a small piece of code takes": (
        "timeit.timeit",
        "timeit",
        "timeit.Timer",
        "timeit.Timer.timeit",
    ),
    "find the standard deviation of some numbers": (
        "statistics.stdev",
        "statistics.pstdev",
    ),
    "middle value of a data set": ("statistics.median",),
    "run another program and get its output": (
        "subprocess.check_output",
        "subprocess.run",
        "subprocess.getoutput",
        "subprocess",
    ),
    "load only some lines of a file without reading the whole thing": (
        "linecache.getline",
        "linecache.getlines",
        "linecache",
    ),
    "guess the content type of a file from its name": (
        "mimetypes.guess_type",
        "mimetypes.MimeTypes.guess_type",
        "mimetypes",
    ),
    "escape special characters for use in a web page": (
        "html.escape",
        "xml.sax.saxutils.escape",
    ),
    "break a URL into scheme, host and path": (
        "urllib.parse.urlparse",
        "urllib.parse.urlsplit",
    ),
    "percent-encode a query string from a dictionary": ("urllib.parse.urlencode",),
    "send an e-mail through a mail server": (
        "smtplib.SMTP.sendmail",
        "smtplib.SMTP.send_message",
        "smtplib.SMTP",
        "smtplib",
    ),
    "ignore certain exceptions in a with block": ("contextlib.suppress",),
    "write a context manager as a generator function": ("contextlib.contextmanager",),
    "iterate over pairs of successive elements": ("itertools.pairwise",),
    "all possible orderings of a list": ("itertools.permutations",),
    "read settings from an ini file": (
        "configparser",
        "configparser.RawConfigParser.read",
        "configparser.ConfigParser",
    ),
    "walk through all files below a directory": (
        "os.walk",
        "os.fwalk",
        "glob.glob",
        "pathlib.Path.rglob",
    ),
    "object that expires when nobody else refers to it": (
        "weakref",
        "weakref.WeakValueDictionary",
        "weakref.finalize",
    ),
    "round-robin wait for sockets to become readable": (
        "select.select",
        "selectors",
        "selectors.BaseSelector.select",
    ),
    "deep copy an object with everything it refers to": ("copy.deepcopy",),
}


def write(folder: Path) -> int:
    """Writes corpus, queries and `qrels/test.tsv`; returns how many questions there are."""
    entries = read_corpus()
    known = {entry.id for entry in entries}
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    _lines(folder / "corpus.jsonl", [{"_id": e.id, "title": "", "text": e.text} for e in entries])
    asked = {
        f"q{i}": (text, [name for name in ids if name in known]) for i, (text, ids) in enumerate(QUESTIONS.items(), 1)
    }
    asked = {name: one for name, one in asked.items() if one[1]}  # another Python may have other names
    _lines(folder / "queries.jsonl", [{"_id": name, "text": text, "metadata": {}} for name, (text, _) in asked.items()])
    judged = [f"{name}\t{entry}\t1\n" for name, (_, ids) in asked.items() for entry in ids]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged), encoding="utf-8")
    return len(asked)


def _lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    sys.stdout.write(f"{folder}: {write(folder)} questions\n")
