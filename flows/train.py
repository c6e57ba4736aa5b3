"""The flow named `cgrpo`: setup, then a sub-flow for each iteration. A Python `for`; Prefect and Ray do the rest."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from prefect import flow, get_run_logger, tags
from prefect.artifacts import create_table_artifact
from prefect.context import FlowRunContext

from cgrpo_core.errors import UserError
from flows.cluster import NAMESPACE, ray_cluster
from flows.gates import check_iteration, describe, raise_failed
from flows.home import data_home
from flows.interrupts import interruptible
from flows.new_run import new_run
from flows.outages import outages_named
from flows.program import check_program
from flows.stale import claim_flow_run, tags_of
from flows.submit import submit_stages, wait_for_all
from flows.summary import iteration_row, stages_of
from flows.task_runner import RayTaskRunner
from flows.terminal import say
from storage.artifacts import Store
from storage.gates import accept_gates
from storage.plans import Plan
from storage.runs import Run, RunLock, end_attempt, open_run, read_plan, start_attempt
from storage.sealing import seal_stages


@flow(name="iteration", flow_run_name="{run} iteration {iteration}", persist_result=False, validate_parameters=False)
def iteration_flow(run: str, home: str, iteration: int) -> None:
    """Run the stages of one iteration, 0 being the setup; what is published already comes back `Cached`."""
    plan = read_plan(Path(home), run)
    stages = stages_of(plan, iteration)
    wait_for_all(submit_stages(stages, run=run, home=home, base_dir=plan.config["base_dir"]))
    row = iteration_row(Store(Path(home)), stages)
    found = check_iteration(Path(home), run, plan, iteration) if iteration else []
    remarks = [describe(result) for result in found if result.status in ("warn", "fail")]
    create_table_artifact(
        key=f"{run}-iteration-{iteration}".replace(".", "-").replace("_", "-"),
        table=[{"metric": name, "value": value} for name, value in row.items()]
        + [{"metric": "gate", "value": remark} for remark in remarks],
        description=f"{run}, iteration {iteration}" if iteration else f"{run}, setup",
    )


@flow(name="cgrpo", flow_run_name="{pipeline} {name}", persist_result=False)
def cgrpo(
    pipeline: str = "critique-grpo",
    profile: str | None = "cpu",
    preset: list[str] = [],  # noqa: B006 (Prefect shows the default in its form; it is never changed)
    set: list[str] = [],  # noqa: B006 (the word that users type)
    name: str | None = None,
    file: str = "pipelines.yaml",
    resume: str | None = None,
    accept: list[str] = [],  # noqa: B006
) -> str:
    """Train: a new run of a pipeline, or with `resume` the rest of a run, past the failed gates that are accepted."""
    home = data_home()
    if resume:
        run = open_run(home, resume)
        check_program(home, run.name)
        accept_gates(home, run.name, accept)
    else:
        run = new_run(home, pipeline, profile=profile, presets=preset, sets=set, name=name, file=Path(file))
    carry_out(home, run)
    return run.name


def carry_out(home: Path, run: Run) -> None:
    """Do what is left of a run, as one attempt. Raises what the failed stage raised."""
    logger = get_run_logger()
    plan, store = read_plan(home, run.name), Store(home)
    iterations = max((stage.iteration or 0 for stage in plan.stages), default=0)
    runner = RayTaskRunner(init_kwargs={"namespace": NAMESPACE})
    nothing_left = all(store.has(stage.key) for stage in plan.stages)
    cluster = nullcontext() if nothing_left else ray_cluster()
    with attempt(home, run.name), outages_named(), cluster, tags(*tags_of(home, run.name)):
        _claim(home, run.name)
        published = {
            iteration
            for iteration in range(iterations + 1)
            if all(store.find(stage.key) for stage in stages_of(plan, iteration))
        }
        # At once: the journal of a long run is long, and is read by whoever adds to it.
        seal_stages(home, run.name, [stage for stage in plan.stages if (stage.iteration or 0) in published])
        for iteration in range(iterations + 1):
            stages = stages_of(plan, iteration)
            if not stages:
                continue  # an evaluation has stages at the iteration of its policy alone
            if iteration in published:
                logger.info("iteration %d of %d: every stage is published", iteration, iterations)
            else:
                logger.info("iteration %d of %d", iteration, iterations)
                try:
                    iteration_flow.with_options(task_runner=runner)(run=run.name, home=str(home), iteration=iteration)
                finally:
                    seal_stages(home, run.name, stages)  # what is published when a stage failed, too
            if iteration:
                _hold_to_gates(home, run.name, plan, iteration)


def _claim(home: Path, run: str) -> None:
    """Say in Prefect that this flow run is the run's, and that those of dead processes have crashed."""
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        marked = claim_flow_run(home, run, context.flow_run.id)
        if marked:
            get_run_logger().warning("%d flow runs of dead processes are marked Crashed", marked)


def _hold_to_gates(home: Path, run: str, plan: Plan, iteration: int) -> None:
    """Say what the gates warn of; raise GateFailed for one that failed, in this attempt or in one before."""
    results = check_iteration(home, run, plan, iteration)
    for result in results:
        if result.status == "warn":
            get_run_logger().warning(describe(result))
            say(describe(result))
    raise_failed(run, results)


@contextmanager
def attempt(home: Path, name: str) -> Iterator[None]:
    """Hold the run's lock and write how the attempt ended. Raises RunBusy if another process has the run."""
    with RunLock(home, name):
        number = start_attempt(home, name)
        try:
            with interruptible():
                yield
        except UserError as error:
            end_attempt(home, name, number, "failed", str(error))
            raise
        except KeyboardInterrupt:
            end_attempt(home, name, number, "interrupted", "interrupted by the user")
            raise
        except BaseException as error:
            end_attempt(home, name, number, "failed", f"{type(error).__name__}: {error}")
            raise
        end_attempt(home, name, number, "completed")
