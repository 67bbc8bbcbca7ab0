"""Workflows, pre-commit hooks, issue forms and the contributors' pages agree with the project."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from support.paths import ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted(GITHUB.glob("workflows/*.yml"))
PAGES = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md")]


def load(path: Path) -> Any:
    # BaseLoader, because the other loaders read the key "on" as True.
    return yaml.load(path.read_text(), yaml.BaseLoader)


def makefile() -> str:
    return (ROOT / "Makefile").read_text()


def commands_of(workflow: Any) -> str:
    steps = [step for job in workflow["jobs"].values() for step in job.get("steps", [])]
    return "\n".join(step["run"] for step in steps if "run" in step)


def test_actionlint_finds_nothing() -> None:
    # Without shellcheck and pyflakes, because not every machine has them.
    actionlint = shutil.which("actionlint", path=Path(sys.executable).parent)
    assert actionlint is not None, 'actionlint is missing: install the extra "dev"'
    command = [actionlint, "-no-color", "-shellcheck=", "-pyflakes=", *map(str, WORKFLOWS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read_and_publish(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    granted = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
    assert granted in ({}, {"publish": {"id-token": "write"}})


def test_only_a_tag_that_passed_tests_and_checks_is_published() -> None:
    jobs = load(GITHUB / "workflows/wheels.yml")["jobs"]
    publish = jobs["publish"]
    assert publish["if"] == "github.ref_type == 'tag'"
    assert publish["environment"]["name"] == "pypi"
    assert set(publish["needs"]) == {"tests", "check"}
    assert set(jobs["check"]["needs"]) == {"wheels", "sdist"}
    assert "python -m build --sdist" in jobs["sdist"]["steps"][-2]["run"]
    assert "twine check --strict dist/*" in commands_of({"jobs": {"check": jobs["check"]}})


@pytest.mark.parametrize("path", [*WORKFLOWS, *PAGES], ids=lambda path: path.name)
def test_every_script_and_goal_that_a_page_or_workflow_names_exists(path: Path) -> None:
    text = commands_of(load(path)) if path.suffix == ".yml" else path.read_text()
    for script in re.findall(r"(?<![\w/])\.(?:ci|github)/[\w./-]*\w", text):
        assert (ROOT / script).exists(), script
    for goal in re.findall(r"(?:^|`)make ([\w./-]+)", text, re.MULTILINE):
        pattern = re.sub(r"3\.\d+|\.venv", "%", goal)
        assert re.search(rf"^(?:{re.escape(goal)}|{re.escape(pattern)}):", makefile(), re.MULTILINE), goal


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_file_that_a_page_names_exists(path: Path) -> None:
    text = path.read_text()
    links = re.findall(r"\]\((?!https:)([^)#]+)", text)
    named = re.findall(r"(?<![\w./%-])(?:[\w-]+/)*[\w-]+\.(?:py|md|yml)\b", text)
    for name in {*links, *named}:
        places = [ROOT / name, ROOT / "flask_uwsgi_websocket" / name, GITHUB / "workflows" / name]
        assert any(place.exists() for place in places), name
    for folder in re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE):
        assert (ROOT / "flask_uwsgi_websocket" / folder / "__init__.py").exists(), folder


def test_github_has_every_supported_python() -> None:
    supported = re.search("^SUPPORTED := (.*)$", makefile(), re.MULTILINE)
    assert supported is not None
    versions = supported[1].split()
    assert re.findall("^COPY --from=python:([0-9.]+)-", (GITHUB / "Dockerfile").read_text(), re.MULTILINE) == versions
    wheels = re.findall(r'"cp3(\d+)-\*"', (ROOT / "pyproject.toml").read_text())
    assert [f"3.{minor}" for minor in wheels] == versions


def test_pre_commit_has_the_versions_of_the_extra_dev() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.extras_require"]["dev"].split("\n")
    pins = {each.name: each.specifier for each in map(Requirement, filter(None, lines))}
    revisions = {
        repository["repo"].rpartition("/")[2]: repository["rev"].removeprefix("v")
        for repository in load(ROOT / ".pre-commit-config.yaml")["repos"]
    }
    assert revisions.keys() == {"ruff-pre-commit", "mirrors-mypy"}
    assert revisions["ruff-pre-commit"] in pins["ruff"]
    assert revisions["mirrors-mypy"] in pins["mypy"]


def test_the_form_for_bugs_asks_for_mode_server_versions_and_the_doctor() -> None:
    form = load(GITHUB / "ISSUE_TEMPLATE/bug.yml")
    fields = {field["id"]: field["attributes"] for field in form["body"]}
    assert {"mode", "server", "versions", "doctor"} <= fields.keys()
    (command,) = re.findall("`(flask [^`]*)`", fields["doctor"]["description"])
    assert f"`{command}`" in (ROOT / "docs/cli.md").read_text()


def test_vulnerabilities_are_reported_in_private() -> None:
    (link,) = load(GITHUB / "ISSUE_TEMPLATE/config.yml")["contact_links"]
    assert link["url"].endswith("/security/advisories/new")
    assert link["url"] in (ROOT / "SECURITY.md").read_text()
