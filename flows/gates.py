"""Gates: what must hold of an iteration, asked in SQL over what it published. One that fails ends the run.

A gate sees one run: its setup and the iterations of its window, the last `over` up to the one that is checked. What it
found is kept with the run, so that a failed gate also stops `cgrpo resume`, until a person accepts it by name. Imports
no Prefect, and DuckDB only where it asks: the error of a failed run keeps modules alive until the process ends, and
DuckDB's bindings complain of whatever is alive then.
"""

import math
import operator
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgrpo_core.errors import UserError
from flows.spec import Gate
from storage.gates import GateResult, GateStatus, read_gates, write_gates
from storage.plans import Plan

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    **{"<=": operator.le, "<": operator.lt, "==": operator.eq},
    **{">=": operator.ge, ">": operator.gt},
}


class GateFailed(UserError):
    """A gate that is declared to fail the run did not hold."""


class GateInvalid(UserError):
    """The query of a gate is not one over the views that gives a single number."""


def declared_gates(plan: Plan) -> dict[str, Gate]:
    """Return the gates that a run was planned with."""
    return {name: Gate.model_validate(values) for name, values in plan.config.get("gates", {}).items()}


def check_queries(plan: Plan) -> None:
    """Ask every gate of an empty store, before anything has run. Raises GateInvalid for a wrong query."""
    from storage.catalog import open_stages

    with open_stages(Path(), "none", []) as connection:
        for name, gate in declared_gates(plan).items():
            _ask(connection, name, gate)


def check_iteration(home: Path, run: str, plan: Plan, iteration: int) -> list[GateResult]:
    """Return what the gates find in an iteration that is complete, asked now or kept from before."""
    from storage.catalog import open_stages

    known = read_gates(home, run, iteration)
    if known is not None:
        return known
    gates = declared_gates(plan)
    results: dict[str, GateResult] = {}
    for window in sorted({gate.over for gate in gates.values()}):
        those = {name: gate for name, gate in gates.items() if gate.over == window and gate.then != "ignore"}
        seen = [stage for stage in plan.stages if iteration - window < (stage.iteration or iteration) <= iteration]
        with open_stages(home, run, seen) as connection:
            for name, gate in those.items():
                value = _ask(connection, name, gate) if iteration >= window else None
                results[name] = _judge(name, gate, run, iteration, value)
    ordered = [results[name] for name in gates if name in results]
    write_gates(home, run, iteration, ordered)
    return ordered


def raise_failed(run: str, results: Iterable[GateResult]) -> None:
    """Raise GateFailed for what failed and was not accepted: query, value, limit and the next command."""
    failed = [result for result in results if result.status == "fail" and not result.accepted]
    if failed:
        accept = " ".join(f"--accept {result.gate}" for result in failed)
        hint = "; ".join(dict.fromkeys(result.next for result in failed if result.next))
        raise GateFailed(
            "\n".join(f"{describe(result)}\n  query: {result.query}" for result in failed),
            f"{hint}{'; ' if hint else ''}to let it pass: cgrpo resume {run} {accept}",
        )


def describe(result: GateResult) -> str:
    """Return a gate that did not hold in one line."""
    word = "failed" if result.status == "fail" else "warns"
    value = "no finite number" if result.value is None else f"{result.value:.4g}"
    return (
        f"gate {result.gate} {word} in iteration {result.iteration}: {value}, must be {result.must_be} {result.bound:g}"
    )


def _ask(connection: "DuckDBPyConnection", name: str, gate: Gate) -> float | None:
    import duckdb

    try:
        statements = connection.extract_statements(gate.query)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise GateInvalid(f"gates.{name}.query is not one SELECT", "write one SELECT that gives one number")
        rows = connection.execute(statements[0]).fetchall()
    except duckdb.Error as error:
        raise GateInvalid(f"gates.{name}.query: {error}", "cgrpo sql 'show tables' lists the views") from None
    values: list[Any] = [value for row in rows for value in row]
    if len(values) != 1 or not isinstance(values[0], int | float | Decimal | None):
        raise GateInvalid(f"gates.{name}.query gives {str(rows)[:60]}, not one number", "select one count or one mean")
    return None if values[0] is None else float(values[0])


def _judge(name: str, gate: Gate, run: str, iteration: int, value: float | None) -> GateResult:
    status: GateStatus = "not_measured"
    if value is not None:
        holds = math.isfinite(value) and COMPARISONS[gate.must_be](value, gate.limit)
        status = "ok" if holds else "fail" if gate.then == "fail" else "warn"
    return GateResult(
        gate=name,
        iteration=iteration,
        status=status,
        value=value if value is not None and math.isfinite(value) else None,
        must_be=gate.must_be,
        bound=gate.limit,
        query=gate.query,
        next=gate.next.replace("RUN", run).replace("ITERATION", str(iteration)),
    )
