"""Which wheel is taken, and what is said of one that cannot be."""

from importlib import metadata

import pytest

from llm_datadist._backends.base import Unavailable
from llm_datadist._backends.nixl import bindings


@pytest.fixture
def installed(monkeypatch):
    """Pretend that these distributions are installed, in these versions, without their modules."""
    versions = {}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(
        bindings, "_PACKAGES", (("no_such_12", "nixl-12"), ("no_such_13", "nixl-13"))
    )
    return versions


def test_none_is_installed(installed):
    with pytest.raises(Unavailable, match="NIXL is not installed; install it with: pip install"):
        bindings.load_bindings()


@pytest.mark.parametrize("version", ["0.10.1", "1.4.1", "1.4.0.dev3", "unknown"])
def test_an_old_wheel_is_refused(installed, version):
    installed["nixl-12"] = version
    with pytest.raises(Unavailable, match=f"nixl-12 {version} is too old, 1.5 or later is needed"):
        bindings.load_bindings()


@pytest.mark.parametrize("version", ["1.5.0", "1.10.2", "1.5rc1", "2.0"])
def test_a_wheel_that_cannot_be_imported_says_why(installed, version):
    installed.update({"nixl-12": "1.4.1", "nixl-13": version})
    with pytest.raises(Unavailable, match=r"nixl-13 cannot be imported .*no_such_13"):
        bindings.load_bindings()
