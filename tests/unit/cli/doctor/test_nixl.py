"""NIXL's wheel: missing, too old, broken, or crashing."""

from importlib import metadata

import pytest

from llm_datadist.cli.doctor.nixl import nixl


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Install a wheel in front of the others: its version, and the text of its bindings."""

    def install(version, bindings=""):
        package = tmp_path / "nixl_cu12"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "_bindings.py").write_text(bindings)
        info = tmp_path / f"nixl_cu12-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: nixl-cu12\nVersion: {version}\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")

    return install


@pytest.fixture
def rdma(tmp_path):
    """Folder with one RDMA device."""
    (tmp_path / "sysfs" / "mlx5_0").mkdir(parents=True)
    return tmp_path / "sysfs"


@pytest.fixture
def not_installed(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("llm_datadist.cli.doctor.nixl.version", absent)


@pytest.mark.usefixtures("not_installed")
def test_without_rdma_it_may_be_missing(tmp_path):
    (found,) = nixl(tmp_path)
    assert found.state == "ok"
    assert "not installed" in found.seen


@pytest.mark.usefixtures("not_installed")
def test_with_rdma_it_is_missed(rdma):
    (found,) = nixl(rdma)
    assert found.state == "warning"
    assert "RDMA devices are not used" in found.seen
    assert "pip install 'llm-datadist[nixl]'" in found.remedy


def test_an_old_wheel(wheel, rdma):
    wheel("1.4.2")
    (found,) = nixl(rdma)
    assert found.state == "warning"
    assert "nixl-cu12 1.4.2 is too old" in found.seen
    assert "1.5 or later" in found.remedy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bindings", "seen"),
    [
        ("raise ImportError('libcudart.so.12')", "ImportError: libcudart.so.12"),
        ("import os; os.kill(os.getpid(), 11)", "the process that loads it: it ended by SIGSEGV"),
    ],
)
def test_a_wheel_that_does_not_fit(wheel, tmp_path, bindings, seen):
    wheel("1.5.1", bindings)
    (found,) = nixl(tmp_path / "none")
    assert found.state == "warning"
    assert seen in found.seen
    assert "a wheel that fits this machine" in found.remedy


@pytest.mark.slow
def test_the_installed_wheel_starts(tmp_path):
    pytest.importorskip("nixl_cu12")
    (found,) = nixl(tmp_path)
    assert found.state == "ok"
    assert "UCX" in found.seen
