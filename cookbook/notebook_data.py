"""What several notebooks read: the documentation of some modules of Python's standard library, and questions about it.

    python cookbook/notebook_data.py FOLDER

writes them as a collection for `tamis eval`. Which entries answer a question was settled from the library's
documentation, before any model was run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from stdlib_corpus import Entry, read_corpus

MODULES = {
    "argparse", "array", "base64", "bisect", "calendar", "collections", "concurrent", "configparser", "contextlib",
    "copy", "csv", "dataclasses", "datetime", "difflib", "enum", "fnmatch", "fractions", "functools", "getpass",
    "glob", "gzip", "hashlib", "heapq", "html", "http", "ipaddress", "itertools", "json", "logging", "math",
    "operator", "os", "pathlib", "pickle", "pprint", "queue", "random", "re", "sched", "secrets", "shelve", "shlex",
    "shutil", "signal", "smtplib", "sqlite3", "statistics", "string", "struct", "subprocess", "tarfile", "tempfile",
    "textwrap", "threading", "time", "timeit", "traceback", "urllib", "uuid", "warnings", "weakref", "webbrowser",
    "zipfile", "zlib",
}  # fmt: skip


class Question(NamedTuple):
    """A question, and the ids of the entries that answer it."""

    text: str
    expected: tuple[str, ...]


QUESTIONS = tuple(
    Question(text, tuple(expected.split()))
    for text, expected in (
        ("How do I read one file inside a zip archive without extracting the whole archive?",
         "zipfile.ZipFile.open zipfile.ZipFile.read"),
        ("How can I remember the results of a slow function so that they are not computed twice?",
         "functools.cache functools.lru_cache"),
        ("I have several lists that are sorted already. How do I go through all of them in order?",
         "heapq.merge"),
        ("How do I show which lines changed between two versions of a text?",
         "difflib.unified_diff difflib.context_diff difflib.ndiff difflib.Differ difflib.Differ.compare"),
        ("I need a scratch folder that is removed by itself when I am done with it.",
         "tempfile.TemporaryDirectory"),
        ("How do I run another program and get what it printed?",
         "subprocess.run subprocess.check_output subprocess.getoutput"),
        ("How do I make a password reset link that nobody can guess?",
         "secrets.token_urlsafe secrets.token_hex"),
        ("What is the easiest way to count how often each word occurs in a list?",
         "collections.Counter"),
        ("How do I copy a folder with everything in it?",
         "shutil.copytree"),
        ("How do I get every pair of items from a list?",
         "itertools.combinations"),
        ("How can I keep a list sorted while I add things to it?",
         "bisect.insort_right bisect.insort_left"),
        ("What is the middle value of some measurements?",
         "statistics.median statistics.median_low statistics.median_high"),
        ("How do I make several threads wait until all of them have reached the same point?",
         "threading.Barrier threading.Barrier.wait"),
        ("How do I split a command line into words as the shell would?",
         "shlex.split"),
        ("How much room is left on the disk?",
         "shutil.disk_usage"),
        ("How do I make a user's text safe to put into a web page?",
         "html.escape"),
        ("How do I read what stands after the question mark of a web address?",
         "urllib.parse.parse_qs urllib.parse.parse_qsl"),
        ("How do I ask for a password without showing what is typed?",
         "getpass.unix_getpass getpass.win_getpass"),
        ("Does this year have a 29th of February?",
         "calendar.isleap"),
        ("How do I break a long text into lines of at most 70 characters?",
         "textwrap.wrap textwrap.fill textwrap.TextWrapper"),
        ("How do I draw a winner when some tickets have higher chances than others?",
         "random.choices random.Random.choices"),
        ("How do I turn an object into text that JavaScript can read?",
         "json.dumps json.dump"),
        ("How do I duplicate nested lists so that changing one leaves the other alone?",
         "copy.deepcopy"),
        ("How do I show a page to the user in Firefox or whatever they use?",
         "webbrowser.open webbrowser.open_new webbrowser.open_new_tab"),
        ("Where do I put tasks so that the most urgent one comes out first?",
         "queue.PriorityQueue"),
        ("How fast is this small piece of code?",
         "timeit timeit.timeit timeit.repeat timeit.Timer timeit.Timer.timeit"),
        ("How do I read settings from an .ini file?",
         "configparser configparser.ConfigParser configparser.RawConfigParser.read"),
        ("I want to skip an error without writing try and except.",
         "contextlib.suppress"),
        ("How do I find all text files in a folder and the folders inside it?",
         "glob.glob glob.iglob pathlib.Path.rglob pathlib.Path.glob"),
        ("How do I call a function ten seconds from now?",
         "threading.Timer sched.scheduler.enter"),
        ("How do I keep the stack of the last error as a string, for a log?",
         "traceback.format_exc"),
        ("How do I start a new log file when the old one has become too large?",
         "logging.handlers.RotatingFileHandler"),
    )
)  # fmt: skip

UNANSWERABLE = (  # nothing among these modules answers them
    "How do I draw a bar chart?",
    "How do I make a photo smaller?",
    "How do I train a neural network?",
    "Which soil do tomatoes like?",
)


def documentation() -> list[Entry]:
    """The entries of `MODULES`, about two thousand."""

    def wanted(files: Iterable[Path]) -> list[Path]:
        return [file for file in files if MODULES & {part.removesuffix(".py") for part in file.parts[-3:]}]

    return [entry for entry in read_corpus(wanted) if entry.id.split(".")[0] in MODULES]


def save_collection(folder: Path) -> Path:
    """Writes the questions and the documentation as a folder in BEIR's layout, and returns it.

    An unanswerable question is judged too: one entry, grade 0. Names that this Python does not have are left out.
    """
    entries = documentation()
    ids = {entry.id for entry in entries}
    (folder / "qrels").mkdir(parents=True)
    asked = [*QUESTIONS, *(Question(text, ()) for text in UNANSWERABLE)]
    queries = [{"_id": f"q{number}", "text": question.text} for number, question in enumerate(asked)]
    judged = ["query-id\tcorpus-id\tscore"]
    for query, question in zip(queries, asked, strict=True):
        expected = [name for name in question.expected if name in ids]
        judged += [f"{query['_id']}\t{name}\t1" for name in expected] or [f"{query['_id']}\t{entries[0].id}\t0"]
    _write(folder / "corpus.jsonl", ({"_id": entry.id, "title": "", "text": entry.text} for entry in entries))
    _write(folder / "queries.jsonl", queries)
    (folder / "qrels" / "dev.tsv").write_text("\n".join(judged) + "\n")
    return folder


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    save_collection(Path(sys.argv[1]))
