"""The deployments that are served are those that prefect.yaml declares, with flows that exist."""

from pathlib import Path

import yaml

from flows.deployments import DEPLOYMENTS

ROOT = Path(__file__).parents[2]


def test_prefect_yaml_declares_what_cgrpo_serve_serves() -> None:
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    places = {one["name"]: one["entrypoint"].replace("/", ".").replace(".py:", ":") for one in declared}
    assert places == {name: place for name, (place, _) in DEPLOYMENTS.items()}
    for place in places.values():
        module, _, function = place.partition(":")
        assert f"def {function}(" in (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
