"""RDMA devices, from a tree like that of sysfs."""

import pytest

from llm_datadist.cli.doctor.rdma import rdma


@pytest.fixture
def sysfs(tmp_path):
    """Make devices with one port each, in these states."""

    def make(**states):
        for name, state in states.items():
            port = tmp_path / "infiniband" / name / "ports" / "1"
            port.mkdir(parents=True)
            (port / "state").write_text(f"{state}\n")
            (port / "link_layer").write_text("InfiniBand\n")
            (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
        return tmp_path / "infiniband"

    return make


@pytest.fixture
def verbs(tmp_path):
    folder = tmp_path / "verbs"
    folder.mkdir()
    (folder / "uverbs0").touch()
    return folder


def test_none(tmp_path):
    (found,) = rdma(tmp_path / "none")
    assert found.state == "ok"
    assert "no device" in found.seen


def test_an_active_port(sysfs, verbs):
    (found,) = rdma(sysfs(mlx5_0="4: ACTIVE", mlx5_1="1: DOWN"), verbs)
    assert found.state == "ok"
    assert "mlx5_0: ACTIVE InfiniBand 400 Gb/sec (4X NDR)" in found.seen
    assert "mlx5_1: DOWN" in found.seen


def test_no_port_is_active(sysfs, verbs):
    (found,) = rdma(sysfs(mlx5_0="1: DOWN"), verbs)
    assert found.state == "warning"
    assert "no port is active" in found.seen
    assert "ibstat" in found.remedy


def test_the_device_files_are_not_in_the_container(sysfs, tmp_path):
    (found,) = rdma(sysfs(mlx5_0="4: ACTIVE"), tmp_path / "none")
    assert found.state == "warning"
    assert "--device /dev/infiniband" in found.remedy
