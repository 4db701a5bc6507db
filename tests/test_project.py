"""pyproject.toml, CI, CITATION.cff and CHANGELOG.md agree with each other."""

import re
import tomllib

import yaml
from helpers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_ci_has_the_oldest_and_the_newest_python_that_the_project_names():
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if line.startswith("Programming Language")]
    ci = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert ci["jobs"]["test"]["strategy"]["matrix"]["python"] == [named[0], named[-1]]
    next_minor = int(named[-1].partition(".")[2]) + 1
    assert PROJECT["requires-python"] == f">={named[0]},<3.{next_minor}"


def test_the_version_is_the_same_everywhere_and_has_an_entry():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    entries = re.findall(r"^## \[(.+?)\](?: - ([\d-]+))?$", log, re.MULTILINE)
    assert entries[0] == ("Unreleased", "")
    assert entries[1] == (citation["version"], citation["date-released"])
