"""What the store does at scale: a run of 1,000 iterations and 10 million responses opened, compacted and asked.

    python benchmarks/store.py make HOME [--iterations 1000] [--responses 10000000]
    python benchmarks/store.py open HOME        seconds to open the run, in the process and as commands
    python benchmarks/store.py ask HOME         seconds of aggregates
    python benchmarks/store.py publish          MB/s of publishing, and where the time goes
    python benchmarks/store.py stages HOME RUN  seconds of each iteration of a real run outside its engines

`make` writes a store of made-up rows (store_made.py) once; compact it with `CGRPO_HOME=HOME cgrpo compact`, and measure
before and after. Each figure is given as wall seconds and as CPU-seconds, which other work on the machine changes less.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

RUN = "long"
TURNS = 5
ROWS, TOKENS = 2000, 500  # of what `publish` publishes
STAGES = """
select iteration, stage, epoch(started_at), epoch(ended_at),
    coalesce((metrics->>'sampling_seconds')::double, 0) + coalesce((metrics->>'lease_seconds')::double, 0)
    + coalesce((metrics->>'update_seconds')::double, 0)
from stages where published and iteration is not null order by iteration, started_at
"""
QUESTIONS = {
    "reward by iteration": "select iteration, avg(reward) from verdicts where stage = 'verify' group by iteration",
    "responses by policy version": "select policy_version, count(*) from responses group by policy_version",
    "cut off by iteration": "select iteration, avg((finish_reason = 'length')::int) from responses group by iteration",
    "flips through critiques": "select f.iteration, count(*) from refinements f join verdicts v"
    " on v.stage = 'verify_refinements' and v.subject_id = f.refinement_id and v.correct group by f.iteration",
    "one iteration's responses": "select response_id, text from responses where iteration = 500",
    "seconds by stage": "select stage, sum(seconds) from stages group by stage",
}


def timed(call: Callable[[], Any], turns: int = TURNS) -> dict[str, float]:
    """Return the medians of wall and CPU seconds of a call, and the quickest one."""
    walls, cpus = [], []
    for _ in range(turns):
        wall, cpu = time.monotonic(), time.process_time()
        call()
        walls.append(time.monotonic() - wall)
        cpus.append(time.process_time() - cpu)
    return {"seconds": median(walls), "quickest": min(walls), "cpu_seconds": median(cpus)}


def measure_open(home: Path) -> None:
    """Open the run and its catalogue in this process, then as whole commands."""
    from storage.catalog import open_catalog
    from storage.runs import run_state

    show("state of the run, in the process", timed(lambda: run_state(home, RUN)))
    show("catalogue of the run, in the process", timed(lambda: open_catalog(home, [RUN]).close()))
    for words in (["--help"], ["status", RUN], ["sql", "select count(*) from runs", "--run", RUN]):
        show(f"cgrpo {' '.join(words[:1])}", _command(home, words))


def _command(home: Path, words: list[str]) -> dict[str, float]:
    environment = {**os.environ, "CGRPO_HOME": str(home)}
    command = [str(Path(sys.executable).parent / "cgrpo"), *words]
    walls, before = [], os.times()
    for _ in range(TURNS):
        began = time.monotonic()
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        walls.append(time.monotonic() - began)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": median(walls), "quickest": min(walls), "cpu_seconds": cpu / TURNS}


def measure_questions(home: Path) -> None:
    """Ask each question of an open catalogue."""
    from storage.catalog import open_catalog

    connection = open_catalog(home, [RUN])
    for name, question in {"rows": "select count(*) from responses", **QUESTIONS}.items():
        rows = connection.execute(question).fetchall()
        result = f"{rows[0][0]} responses" if name == "rows" else f"{len(rows)} rows"
        show(f"{name} ({result})", timed(lambda question=question: connection.execute(question).fetchall(), 3))


def measure_publish() -> None:
    """Publish responses of usual size, and time its parts apart: rows to columns, checks, Parquet, sha256, the disk."""
    import hashlib

    import pyarrow as pa
    import pyarrow.parquet as pq

    from cgrpo_core.records import Response
    from storage.artifacts import Manifest, Store, parquet_options
    from storage.durable import write_bytes
    from storage.schemas import to_table, validate

    rows = _responses(ROWS, TOKENS)
    table, sink, options = to_table(Response, rows), pa.BufferOutputStream(), parquet_options(Response)
    pq.write_table(table, sink, compression="zstd", **options)
    content = sink.getvalue().to_pybytes()
    values = {
        "stage": "rollout",
        "task": "tasks.rollout:sample_responses",
        "stage_version": 1,
        "iteration": 1,
        "chunk": 0,
    }
    manifests = (Manifest(key=f"{n:064x}", started_at=0.0, ended_at=1.0, **values) for n in range(100))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory(dir=os.environ.get("CGRPO_HOME")) as directory:
        figures = timed(lambda: Store(Path(directory)).publish(next(manifests), {"responses": (Response, rows)}))
        show("publish", figures)
        show("rows to columns", timed(lambda: to_table(Response, rows)))
        show("checks of rows", timed(lambda: validate(Response, rows)))
        show(
            "columns to Parquet",
            timed(lambda: pq.write_table(table, pa.BufferOutputStream(), compression="zstd", **options)),
        )
        show("sha256", timed(lambda: hashlib.sha256(content).hexdigest()))
        show("write and sync", timed(lambda: write_bytes(Path(directory) / "file", content)))
    size = table.nbytes / 1e6
    print(f"{len(rows)} responses of {TOKENS} tokens: {size:.1f} MB of columns, {len(content) / 1e6:.1f} MB on disk,")
    print(f"{len(content) / len(rows):.0f} bytes on disk a response; {size / figures['seconds']:.0f} MB/s,", end=" ")
    print(f"{size / figures['cpu_seconds']:.0f} MB a CPU-second")


def _responses(number: int, tokens: int) -> list[Any]:
    from cgrpo_core.records import Response

    draw = np.random.default_rng(1)
    words = ["so", "the", "number", "of", "apples", "is", "4", "x", "=", "12", "and", "therefore", "we", "get", "half"]
    rows = []
    for index in range(number):
        text = " ".join(words[place] for place in draw.integers(0, len(words), tokens))
        sampled = {"token_ids": tuple(draw.integers(0, 49152, tokens).tolist()), "text": text, "finish_reason": "stop"}
        logprobs = tuple((-draw.exponential(0.5, tokens)).astype(np.float32).tolist())
        ids = {
            "response_id": f"r-{index:020x}",
            "group_id": f"p-{index // 8:020x}",
            "problem_id": f"q-{index // 8:020x}",
        }
        rows.append(
            Response(**ids, **sampled, index=index % 8, sampling_logprobs=logprobs, policy_version=1, seed=index)
        )
    return rows


def measure_stages(home: Path, run: str) -> None:
    """Print seconds a stage outside its engines, from what a real run stored: medians over iterations."""
    from storage.catalog import query

    rows = query(home, STAGES, runs=[run]).rows
    by_iteration: dict[int, list[tuple[str, float, float, float]]] = {}
    for iteration, stage, began, ended, inside in rows:
        by_iteration.setdefault(iteration, []).append((stage, began, ended, inside))
    figures = []
    for iteration, stages in sorted(by_iteration.items()):
        after = min((began for _, began, _, _ in by_iteration.get(iteration + 1, [])), default=None)
        wall = (after or max(ended for _, _, ended, _ in stages)) - min(began for _, began, _, _ in stages)
        engines = sum(inside for *_, inside in stages)
        figures.append((wall, engines, (wall - engines) / len(stages), len(stages)))
    warm = figures[len(figures) // 10 :]
    for place, name in enumerate(("an iteration", "engines", "a stage outside its engines")):
        values = sorted(row[place] for row in warm)
        print(f"{name:<28} median {median(values):.3f} s, 90% under {values[int(0.9 * len(values))]:.3f} s")
    print(f"{len(warm)} iterations of {median(row[3] for row in warm):.0f} stages")
    for stage in dict.fromkeys(stage for _, stage, *_ in rows):
        seconds = [
            ended - began - inside for of in by_iteration.values() for s, began, ended, inside in of if s == stage
        ]
        print(f"  within {stage:<22} median {median(seconds):.3f} s besides its engine")


def show(name: str, figures: dict[str, float]) -> None:
    """Print a line of figures."""
    print(f"{name:<48}" + "  ".join(f"{key} {value:.3f}" for key, value in figures.items()), flush=True)


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "open", "ask", "publish", "stages"])
    parser.add_argument("home", type=Path, nargs="?", default=Path(".cgrpo"))
    parser.add_argument("run", nargs="?", default=RUN)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--responses", type=int, default=10_000_000)
    asked = parser.parse_args()
    home = asked.home.resolve()
    if asked.what == "make":
        from store_made import make

        make(home, RUN, iterations=asked.iterations, chunks=2, responses=asked.responses, say=print)
    elif asked.what == "stages":
        measure_stages(home, asked.run)
    else:
        {"open": lambda: measure_open(home), "ask": lambda: measure_questions(home), "publish": measure_publish}[
            asked.what
        ]()


if __name__ == "__main__":
    main()
