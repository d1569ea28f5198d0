"""What `import llm_datadist` does not import, so that it stays short beside numpy's import."""

import re
import subprocess
import sys
from importlib import metadata

import pytest

import llm_datadist

#: Modules that numpy may import in some release, but this package must not need.
SLOW = [
    "asyncio",
    "concurrent.futures",
    "http",
    "importlib.metadata",
    "json",
    "msgspec",
    "multiprocessing",
    "nixl_cu12",
    "nixl_cu13",
    "opentelemetry",
    "pydantic",
    "rich",
    "socket",
    "ssl",
    "subprocess",
    "torch",
    "typer",
    "typing_extensions",
]
#: Packages that only an instance needs.
OF_INSTANCES = ["_backends", "_control", "_devices", "_domains", "_engine", "_links", "_native"]


def imported_by(statement):
    """Return the modules that a fresh interpreter imports for a statement, beyond numpy's."""
    program = (
        "import sys, numpy; before = set(sys.modules)\n"
        f"{statement}\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


@pytest.fixture(scope="module")
def modules():
    return imported_by("import llm_datadist")


@pytest.mark.parametrize("name", SLOW)
def test_the_package_does_not_import_a_slow_module(modules, name):
    assert [module for module in modules if re.match(rf"{name}(\.|$)", module)] == []


@pytest.mark.parametrize("name", OF_INSTANCES)
def test_the_package_does_not_import_what_only_an_instance_needs(modules, name):
    prefix = f"llm_datadist.{name}"
    assert [module for module in modules if re.match(rf"{prefix}(\.|$)", module)] == []


def test_the_version_is_that_of_the_distribution():
    assert llm_datadist.__version__ == metadata.version("llm-datadist")


@pytest.mark.parametrize("name", ["asyncio", "matplotlib", "msgspec", "ssl", *OF_INSTANCES])
def test_the_command_line_does_not_import_what_only_a_command_needs(command_line, name):
    names = (name, f"llm_datadist.{name}")
    assert [module for module in command_line if module.startswith(names)] == []


@pytest.fixture(scope="module")
def command_line():
    return imported_by("import llm_datadist.cli.app")
