"""An audit's certificate on one page, for a person."""

from dataclasses import asdict
from typing import Any

from flows.audit import Certificate, audit
from flows.home import data_home
from flows.terminal import dump_json, say
from storage.runs import open_run, run_directory

NAMED = 50  # findings and notes printed one by one; --json has them all
WIDTH = 240  # of a line; --json has all of it


def print_certificate(name: str | None, *, replay: bool, as_json: bool) -> bool:
    """Audit a run, or the newest, print its certificate, and return whether it is clean. Raises RunNotFound."""
    home = data_home()
    if name is None or not run_directory(home, name).is_dir():
        name = open_run(home, name).name
    say(f"auditing run {name}: every file is read, and nothing is written")
    certificate = audit(home, name, say, replay=replay)
    if as_json:
        dump_json(asdict(certificate))
    else:
        print(page(certificate))
    return certificate.clean


def page(certificate: Certificate) -> str:
    """Return the certificate as text; characters that a terminal would obey are shown as their codes."""
    code = certificate.identity["code"] or {}
    lines = [
        f"run {certificate.run}: {'clean' if certificate.clean else 'DAMAGED'} ({certificate.state})",
        f"merkle root   {certificate.merkle_root}",
        f"policy        {certificate.policy_version}, weights {certificate.weights_sha256}",
        f"checked       {', '.join(f'{count} {name}' for name, count in sorted(certificate.counts.items()))}",
        f"code          {_code(code)}",
        f"auditor       {_code(certificate.auditor)}",
    ]
    for name, identity in sorted(certificate.identity["inputs"].items()):
        if identity.get("digest") != "unused":
            known_by = ", ".join(f"{key} {value}" for key, value in identity.items() if isinstance(value, str))
            lines.append(f"{name:13} {known_by}")
    if certificate.replay is not None:
        equal = sum(update["verdict"] == "equal" for update in certificate.replay)
        lines.append(f"replayed      {equal} of {len(certificate.replay)} updates give the published weights")
    lines += _listed("finding", certificate.findings) + _listed("note", certificate.notes)
    return "\n".join(_plain(line) for line in lines)


def _code(code: dict[str, Any]) -> str:
    if not code:
        return "unknown: the run does not say"
    dirty = {True: ", with changes", False: "", None: ""}[code["dirty"]]
    commit = f"commit {code['commit'][:12]}{dirty}" if code["commit"] else "no git checkout"
    lock = (code["lock_sha256"] or "none")[:12]
    return f"cgrpo {code['version']}, {commit}, sources {code['sources_sha256'][:12]}, lock {lock}"


def _listed(word: str, rows: list[dict[str, str]]) -> list[str]:
    if not rows:
        return []
    more = [f"  ... and {len(rows) - NAMED} more (--json lists all)"] if len(rows) > NAMED else []
    title = f"{len(rows)} {word}{'s' if len(rows) > 1 else ''}:"
    return [title, *(f"  {row['check']}: {row['subject']}: {row['problem']}" for row in rows[:NAMED]), *more]


def _plain(line: str) -> str:
    shown = line if len(line) <= WIDTH else line[:WIDTH] + "..."
    return "".join(mark if mark.isprintable() else f"\\x{ord(mark):02x}" for mark in shown)
