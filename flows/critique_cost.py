"""What the critiques of a run took and did, by kind and model: tokens, latency, price, right and wrong refinements."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.home import data_home
from flows.report import show_table
from flows.resolve import read_declaration
from flows.terminal import dump_json, say
from storage.catalog import query
from storage.runs import open_run, read_plan

# What was paid for, once a reply however many attempts share it; and what the model said, attempt by attempt.
ASKED = """
select kind, model, sum(attempts)::bigint as attempts, sum(agreed)::bigint as agreed, count(*) as replies,
       sum(prompt_tokens)::bigint as prompt_tokens, sum(completion_tokens)::bigint as completion_tokens,
       avg(latency_ms) as latency_ms
from (
  select kind, model, reply_id, count(*) as attempts, count(*) filter (status = 'agreed') as agreed,
         max(prompt_tokens) as prompt_tokens, max(completion_tokens) as completion_tokens, max(latency_ms) as latency_ms
  from critique_attempts group by all)
group by all order by all
"""
# What became of the responses that the critiques are of. A critique that stands in for another counts as what it is.
DONE = """
select c.kind, c.model, count(distinct c.critique_id) as critiques,
       count(distinct c.critique_id) filter (c.degraded is not null) as degraded, count(f.refinement_id) as refinements,
       count(*) filter (f.refinement_id is not null and not v.correct and w.correct) as wrong_to_right,
       count(*) filter (f.refinement_id is not null and v.correct and w.status in ('ok', 'unparsable')
                        and not w.correct) as right_to_wrong
from critiques c
join verdicts v on v.run = c.run and v.subject_id = c.response_id
left join refinements f on f.run = c.run and f.critique_id = c.critique_id and f.responses_quoted > 0
left join verdicts w on w.run = f.run and w.subject_id = f.refinement_id
group by all order by all
"""
NOTHING_ASKED = ("attempts", "agreed", "replies", "prompt_tokens", "completion_tokens")
NOTHING_DONE = ("critiques", "degraded", "refinements", "wrong_to_right", "right_to_wrong")
Row = dict[str, Any]


def print_critique_cost(name: str | None, *, as_json: bool, prices_file: Path | None) -> None:
    """Print one row for each kind and model. Prices are those frozen with the run, or those of a declaration."""
    home = data_home()
    run = open_run(home, name)
    if prices_file is None:
        prices = read_plan(home, run.name).config.get("prices") or {}
    else:
        prices = {model: price.model_dump() for model, price in read_declaration(prices_file)[0].prices.items()}
    rows = cost_rows(home, run.name, prices)
    if as_json:
        dump_json(rows)
    elif rows:
        show_table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        say(f"run {run.name} has published no critique")
    unpriced = sorted({row["model"] for row in rows if row["replies"] and row["price"] is None} - {"policy"})
    if unpriced:
        say(f"no price for {', '.join(unpriced)}: an engine of ours, or not in the table `prices` of pipelines.yaml")


def cost_rows(home: Path, run: str, prices: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Return the rows, by kind and model; price is None for a model that is not in the table."""
    asked, done = _by_writer(home, run, ASKED), _by_writer(home, run, DONE)
    rows = []
    for kind, model in sorted(asked.keys() | done.keys()):
        spent = asked.get((kind, model)) or dict.fromkeys(NOTHING_ASKED, 0) | {"latency_ms": None}
        gained = done.get((kind, model)) or dict.fromkeys(NOTHING_DONE, 0)
        price = _price(spent, prices.get(model))
        rows.append({"kind": kind, "model": model, **gained, **spent, "price": price})
    return rows


def _by_writer(home: Path, run: str, sql: str) -> dict[tuple[str, str], Row]:
    result = query(home, sql, runs=[run])
    rows = [dict(zip(result.columns, row, strict=True)) for row in result.rows]
    return {(row.pop("kind"), row.pop("model")): row for row in rows}


def _price(spent: Row, price: Mapping[str, float] | None) -> float | None:
    if price is None:
        return None
    prompt, completion = spent["prompt_tokens"], spent["completion_tokens"]
    return float(prompt * price["prompt_per_million"] + completion * price["completion_per_million"]) / 1e6
