"""Bulk scoring over Ray Data beside one process on the same cores.

    python benchmarks/bulk.py [--pairs 100000] [--cores 2] [--actors 1] [--rounds 1] [--words 400] [--dtype auto]

The pairs lie in Parquet files, 50 passages to a query. One process reads them and calls `rank_many`, with as many
threads as there are cores; a local Ray cluster with as many CPUs runs `score_dataset`, which also writes. The two take
turns. Loading is outside both times: of the process by a warm-up, of the actors by counting from the first file that
they write to the last. Two ratios: of pairs a second, and of processor time a pair, where Ray's is that of the actors,
the driver and all of Ray's own processes; the second one holds on a machine that does other things as well. Memory is
what /proc says of the driver and the actors, every half second. With 100,000 pairs it takes half an hour for each of
the two on two cores; try `--pairs 4000` first.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import machine
import workload as loads
from rich.console import Console
from rich.table import Table

from tamis.evaluation.prose import LONGEST, sample_passages

PER_QUERY = 50
FILES = 4
EVERY = 0.5  # seconds between two looks at the memory
WARM = 200  # pairs before the clock of the process starts
ACTOR = b"ray::MapWorker"
SHOWN = (
    "in-process pairs/s", "steady pairs/s", "ratio", "in-process processor ms/pair", "processor ms/pair",
    "actors' processor ms/pair", "processor ratio", "pairs/s", "tokens/s",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """What is run."""

    pairs: int
    words: int
    cores: int
    actors: int
    rounds: int
    batch: int
    dtype: str


def write(folder: Path, size: Size) -> None:
    """The pairs, in Parquet files."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    texts = sample_passages(size.pairs)
    rows = [
        {"id": i, "query": f"{loads.QUERY} ({i // PER_QUERY})", "text": " ".join(text.split()[: size.words])}
        for i, text in enumerate(texts)
    ]
    share = -(-len(rows) // FILES)
    folder.mkdir()
    for number in range(FILES):
        write_table(pa.Table.from_pylist(rows[number * share : (number + 1) * share]), folder / f"{number}.parquet")


def in_process(source: str, checkpoint: str, dtype: str) -> tuple[float, float, int, dict[int, float]]:
    """Seconds, processor seconds, tokens and logits of one process over all pairs; runs in a process of its own."""
    from itertools import groupby

    import pyarrow.dataset as files

    import tamis

    def requests(batches: Iterator[Any]) -> Iterator[tuple[str, list[str]]]:
        rows = (row for batch in batches for row in batch.to_pylist())
        for query, members in groupby(rows, key=lambda row: row["query"]):
            found = list(members)
            ids.extend(row["id"] for row in found)
            yield query, [row["text"] for row in found]

    data = files.dataset(source)
    logits: dict[int, float] = {}
    tokens, done = 0, 0
    with tamis.load(checkpoint, dtype=dtype) as reranker:
        ids: list[int] = []
        reranker.logits(loads.QUERY, data.head(WARM)["text"].to_pylist())
        start, used = time.perf_counter(), time.process_time()
        for ranking in reranker.rank_many(requests(data.to_batches())):
            tokens += ranking.usage.tokens
            logits.update((ids[done + hit.index], hit.logit) for hit in ranking)
            done += len(ranking)
        return time.perf_counter() - start, time.process_time() - used, tokens, logits


def over_ray(source: str, checkpoint: str, output: Path, size: Size) -> dict[str, Any]:
    """Rates and memory of a job."""
    import ray

    from tamis_ray import score_dataset

    ray.init(num_cpus=size.cores, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        with watched() as memory:
            start = time.time()
            score_dataset(
                source, checkpoint, output=output, id_columns=["id"], batch_size=size.batch, dtype=size.dtype,
                actors=size.actors, num_cpus=size.cores / size.actors,
            )  # fmt: skip
            whole = time.time() - start
    finally:
        ray.shutdown()
    parts = sorted((path.stat().st_mtime, path) for path in output.glob("part-*"))
    begun, ended = parts[size.actors - 1][0], parts[-1][0]  # the first part of each actor has the loading in it
    rows = rows_of([path for _, path in parts[size.actors :]])
    while_scoring = [sample for sample in memory if begun <= sample["time"] <= ended]
    first, last = while_scoring[0], while_scoring[-1]
    share = (ended - begun) / (last["time"] - first["time"]) * 1000 / rows
    return {
        "seconds": whole,
        "pairs/s": size.pairs / whole,
        "steady pairs/s": rows / (ended - begun),
        "processor ms/pair": (last["processor"] - first["processor"]) * share,
        "actors' processor ms/pair": (last["actors' processor"] - first["actors' processor"]) * share,
        "memory": while_scoring,
    }


def rows_of(paths: list[Path]) -> int:
    """Rows of some Parquet files."""
    from pyarrow.parquet import read_metadata

    return sum(read_metadata(path).num_rows for path in paths)


@contextmanager
def watched() -> Iterator[list[dict[str, float]]]:
    """Fills in, while it is open: MB of this process and of the actors together, processor seconds of everything."""
    found: list[dict[str, float]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(EVERY):
            everything = family()
            pool = [pid for pid in everything if is_actor(pid)]
            actors, scoring = sum(map(private, pool)), sum(map(processor, pool))
            used = sum(map(processor, everything))
            sample = {"time": time.time(), "driver": private(os.getpid()), "actors": actors}
            found.append({**sample, "processor": used, "actors' processor": scoring})

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def family() -> list[int]:
    """This process and all that it started, directly or not: Ray's own processes are among them."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        if (fields := stat(int(path.name))) is not None:
            parents[int(path.name)] = int(fields[1])
    found = [os.getpid()]
    for pid in found:  # grows while it is gone through
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat behind the name, from the state on; None once the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def processor(pid: int) -> float:
    """Seconds of processor time, in its own code and in the kernel, of a process and of its children that ended."""
    fields = stat(pid)
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def private(pid: int) -> float:
    """MB of a process's own pages; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def is_actor(pid: int) -> bool:
    """Whether it is an actor of the job, by the name that Ray gives its process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(ACTOR)
    except OSError:
        return False


def growth(memory: list[dict[str, float]], who: str) -> tuple[float, float]:
    """MB in the median of the first and of the last quarter of the scoring."""
    quarter = max(1, len(memory) // 4)
    return median(m[who] for m in memory[:quarter]), median(m[who] for m in memory[-quarter:])


def compare(folder: Path, size: Size) -> dict[str, Any]:
    """Rounds of both, in turns, and how far their logits are apart."""
    checkpoint = str(folder / "model")
    loads.save_checkpoint(folder / "model", loads.SEED)
    write(folder / "in", size)
    os.environ["OMP_NUM_THREADS"] = str(size.cores)
    rounds, apart = [], 0.0
    for number in range(size.rounds):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            seconds, used, tokens, logits = pool.submit(in_process, str(folder / "in"), checkpoint, size.dtype).result()
        os.environ.pop("OMP_NUM_THREADS")
        output = folder / f"out-{number}"
        job = over_ray(str(folder / "in"), checkpoint, output, size)
        os.environ["OMP_NUM_THREADS"] = str(size.cores)
        apart = max(apart, difference(output, logits))
        own = size.pairs / seconds
        rounds.append(
            {
                "in-process pairs/s": own,
                "in-process processor ms/pair": used / size.pairs * 1000,
                "tokens/s": tokens / seconds,
                **job,
                "ratio": job["steady pairs/s"] / own,
                "processor ratio": used / size.pairs * 1000 / job["processor ms/pair"],
            }
        )
    return {"machine": machine.describe(), "size": vars(size), "rounds": rounds, "largest logit difference": apart}


def difference(output: Path, logits: dict[int, float]) -> float:
    """The largest one between the job's logits and the process's; every id has to be there once."""
    import pyarrow.dataset as files

    made = files.dataset(output).to_table(columns=["id", "logit"]).to_pylist()
    if sorted(row["id"] for row in made) != sorted(logits):
        raise SystemExit("The job lost rows, or has some twice.")
    return max(abs(row["logit"] - logits[row["id"]]) for row in made)


def report(result: dict[str, Any]) -> None:
    """The table, on standard output."""
    size, about = result["size"], result["machine"]
    console = Console()
    console.print(f"{about['date']}: {about['cpu']}, load average {os.getloadavg()[0]:.1f}; {size}")
    table = Table("", *(f"round {number}" for number in range(1, len(result["rounds"]) + 1)))
    for name in SHOWN:
        table.add_row(name, *(f"{one[name]:.3g}" for one in result["rounds"]))
    for who in ("driver", "actors"):
        ends = [growth(one["memory"], who) for one in result["rounds"]]
        table.add_row(f"{who}: MB, first and last quarter", *(f"{first:.0f}, {last:.0f}" for first, last in ends))
    console.print(table)
    for name in ("ratio", "processor ratio"):
        console.print(f"median {name} {median(one[name] for one in result['rounds']):.1%}")
    console.print(f"largest logit difference {result['largest logit difference']:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=LONGEST, help="passages are cut to this many")
    parser.add_argument("--cores", type=int, default=machine.cores())
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path)
    given = vars(parser.parse_args())
    path = given.pop("json")
    with tempfile.TemporaryDirectory() as folder:
        result = compare(Path(folder), Size(**given))
    if path:
        path.write_text(json.dumps(result, indent=1))
    report(result)


if __name__ == "__main__":
    main()
