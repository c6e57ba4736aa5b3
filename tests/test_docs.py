"""The documentation, checked against the program: a command, query, path, link or parameter that is named exists."""

import contextlib
import json
import re
import shlex
from dataclasses import asdict, fields, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from cgrpo_core.params import BLOCKS, Params
from cgrpo_core.problems import ANSWER_COLUMNS, ID_COLUMNS, QUESTION_COLUMNS
from flows.cli import app
from storage.catalog import VIEWS, query
from storage.schemas import RECORDS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BOOK = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
TOP_LEVEL = ("flows/", "tasks/", "storage/", "cgrpo_core/", "tests/", "docs/", "benchmarks/", ".ci/")


def command_rows() -> list[str]:
    """Return the rows of the README's table of commands, as the program has them."""
    rows = []
    for name, command in COMMANDS.items():
        words = ["cgrpo", name]
        for argument in (item for item in command.params if item.param_type_name == "argument"):
            words.append(argument.name.upper() if argument.required else f"[{argument.name.upper()}]")
        options = [f"`{item.opts[0]}`" for item in command.params if item.param_type_name == "option"]
        rows.append(f"| `{' '.join(words)}` | {' '.join(options)} | {command.help.strip()} |")
    return rows


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def command_lines() -> list[tuple[str, list[str]]]:
    """Return every `cgrpo ...` of every page, from shell blocks and inline code, split as a shell splits it."""
    found = []
    for page, text in BOOK.items():
        joined = "\n".join(blocks(text, "sh")).replace("\\\n", " ")
        lines = re.findall(
            r"^(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(cgrpo (?:\"[^\"]*\"|[^\"\n])*)", joined, flags=re.MULTILINE
        )
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        prose = "\n".join(line for line in prose.splitlines() if line not in command_rows())
        lines += re.findall(r"`(cgrpo [a-z][^`]*)`", prose)
        found += [(page, shlex.split(line, comments=True)) for line in lines]
    return found


def queries() -> list[str]:
    return [words[2] for _, words in command_lines() if words[1:2] == ["sql"] and len(words) > 2]


def test_the_table_of_commands_is_the_programs_own() -> None:
    table = [line for line in BOOK["README.md"].splitlines() if line.startswith("| `cgrpo ")]
    assert table == command_rows()


@pytest.mark.parametrize(("page", "words"), command_lines(), ids=lambda value: " ".join(value)[:60])
def test_every_command_line_in_the_book_parses(page: str, words: list[str]) -> None:
    assert words[1] in COMMANDS, f"{page}: no command {words[1]}"
    if len(words) == 2:
        return  # a command that is mentioned, not a line to type
    command = COMMANDS[words[1]]
    context = command.make_context(words[1], list(words[2:]))
    if words[1] in ("run", "plan"):
        from flows.resolve import resolve

        values = context.params
        file = ROOT / values["file"]
        if file.is_file():
            resolve(file, values["pipeline"], profile=values["profile"], presets=values["preset"], sets=values["set_"])


def test_the_readme_asks_at_least_five_questions() -> None:
    assert len([words for page, words in command_lines() if page == "README.md" and words[1] == "sql"]) >= 5


@pytest.mark.parametrize("sql", sorted(set(queries())), ids=lambda sql: " ".join(sql.split())[:60])
def test_every_query_in_the_book_runs_over_an_empty_store(sql: str, tmp_path: Path) -> None:
    result = query(tmp_path, sql)
    assert result.columns


def test_the_tables_shown_have_the_columns_that_the_queries_give(tmp_path: Path) -> None:
    shown = re.findall(
        r"```sh\ncgrpo sql \"([^\"]*)\"[^\n]*\n```\n+```text\n(.*?)```", BOOK["README.md"], flags=re.DOTALL
    )
    assert len(shown) >= 5
    for sql, output in shown:
        heading = output.splitlines()[1]
        assert [cell.strip() for cell in heading.strip("┃").split("┃")] == query(tmp_path, sql).columns


@pytest.mark.parametrize("page", list(BOOK))
def test_every_path_named_in_the_book_exists(page: str) -> None:
    named = re.findall(r"`([\w./-]+)`", BOOK[page])
    paths = [path for path in named if path.startswith(TOP_LEVEL) or re.fullmatch(r"[\w-]+\.(yaml|toml|lock)", path)]
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("page", list(BOOK))
def test_every_link_between_pages_resolves(page: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", BOOK[page])
    for target in targets:
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                target
            )


def parameter_paths(page: str) -> list[tuple[str, str]]:
    """Return (path, default) of the rows of a page's tables of parameters."""
    return re.findall(r"^\| `([a-z_]+(?:\.[a-z_]+)+)` \| `([^`]*)` \|", BOOK[page], flags=re.MULTILINE)


def test_the_parameters_of_the_method_are_those_of_the_program_with_the_values_of_paper_v6() -> None:
    from flows.resolve import resolve

    params = resolve(ROOT / "pipelines.yaml", "critique-grpo", presets=["paper_v6"]).params
    rows = parameter_paths("docs/method.md")
    assert len(rows) >= 15
    for path, value in rows:
        assert reduce(getattr, path.split("."), params) == yaml.safe_load(value), path


def test_the_method_names_every_parameter_of_its_blocks() -> None:
    named = {path for path, _ in parameter_paths("docs/method.md")}
    for block in ("rollout", "critique", "refine", "select", "advantage", "loss"):
        for field in fields(BLOCKS[block]):
            path, value = f"{block}.{field.name}", getattr(getattr(Params(), block), field.name)
            wanted = {f"{path}.{inner.name}" for inner in fields(value)} if is_dataclass(value) else {path}
            assert wanted <= named


def test_the_steps_in_the_readme_are_the_stages_of_the_declaration_in_order() -> None:
    graph = yaml.safe_load((ROOT / "pipelines.yaml").read_text(encoding="utf-8"))["pipelines"]["critique-grpo"]
    declared = [
        (name, stage["task"].split(":")[0].replace(".", "/") + ".py", list(stage["out"].values()))
        for section in ("explore", "learn")
        for name, stage in graph[section].items()
    ]
    rows = re.findall(
        r"^\| [^|]+ \| `(\w+)` \| `(tasks/\w+\.py)` \| ([^|]+) \|$", BOOK["README.md"], flags=re.MULTILINE
    )
    assert [(stage, file) for stage, file, _ in rows] == [(stage, file) for stage, file, _ in declared]
    view_of = {record: view for view, record in VIEWS.items()}
    for (_, _, views), (_, _, records) in zip(rows, declared, strict=True):
        assert re.findall(r"`(\w+)`", views) == [view_of[record] for record in records]


def test_the_storage_page_names_every_view_with_its_record() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", BOOK["docs/storage.md"], flags=re.MULTILINE))
    assert {view: record for view, record in rows.items() if record in RECORDS} == VIEWS


def test_the_readme_names_every_column_that_a_problem_may_have() -> None:
    for column in (*ID_COLUMNS, *QUESTION_COLUMNS, *ANSWER_COLUMNS, "source", "solution", "level", "reward_model"):
        assert f"`{column}`" in BOOK["README.md"]


def test_the_readme_names_every_profile_and_pipeline() -> None:
    declaration = yaml.safe_load((ROOT / "pipelines.yaml").read_text(encoding="utf-8"))
    for name in (*declaration["profiles"], *declaration["pipelines"]):
        assert f"`{name}`" in BOOK["README.md"]


def preset_rows() -> list[str]:
    """Return the rows of the table of differences in docs/presets.md, as pipelines.yaml has them."""
    from flows.resolve import read_declaration, resolve

    declaration, _ = read_declaration(ROOT / "pipelines.yaml")

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found = {}
        for name, value in values.items():
            found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
        return found

    base, rows = flat(asdict(declaration.params)), []
    for name, preset in declaration.presets.items():
        pipelines = preset.pipelines or list(declaration.pipelines)
        spec = resolve(ROOT / "pipelines.yaml", pipelines[0], presets=[name])
        changed = [
            f"`{path}={json.dumps(value).strip(chr(34))}`"
            for path, value in flat(asdict(spec.params)).items()
            if value != base[path]
        ]
        changed += [f"`{stage}` on `{engine}`" for stage, engine in preset.bind.items()]
        rows.append(f"| `{name}` | {', '.join(f'`{one}`' for one in pipelines)} | {', '.join(changed) or 'none'} |")
    return rows


def test_the_table_of_presets_is_that_of_the_declaration() -> None:
    table = re.findall(r"^\| `[\w.]+` \| `[a-z].*\|$", BOOK["docs/presets.md"], flags=re.MULTILINE)
    expected = "\n".join(preset_rows())
    assert "\n".join(table) == expected, f"the rows are now:\n{expected}"


def test_every_preset_has_its_reason() -> None:
    reasons = dict(re.findall(r"^- `([\w.]+)`: (.+)$", BOOK["docs/presets.md"], flags=re.MULTILINE))
    declaration = yaml.safe_load((ROOT / "pipelines.yaml").read_text(encoding="utf-8"))
    assert set(declaration["presets"]) <= set(reasons)


@pytest.mark.parametrize("page", list(BOOK))
def test_nothing_in_the_book_is_unfinished_or_of_one_machine(page: str) -> None:
    folders = [f"/{name}/" for name in ("tmp", "work", "root", "home")]
    for word in ("TODO", "FIXME", "TBD", *folders):
        assert word not in BOOK[page]


def test_every_program_under_benchmarks_is_listed_there() -> None:
    with contextlib.chdir(ROOT / "benchmarks"):
        assert all(f"benchmarks/{path}" in BOOK["benchmarks/README.md"] for path in Path().glob("*.py"))
