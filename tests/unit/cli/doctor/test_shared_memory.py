"""/dev/shm may be missing or small."""

from pathlib import Path

from llm_datadist.cli.doctor.shared_memory import shared_memory


def test_there_is_enough(tmp_path):
    (found,) = shared_memory(tmp_path, least_mib=0)
    assert found.state == "ok"
    assert "MiB free of" in found.seen


def test_there_is_not_enough(tmp_path):
    (found,) = shared_memory(tmp_path, least_mib=1 << 40)
    assert found.state == "warning"
    assert "--shm-size" in found.remedy


def test_it_is_not_there():
    (found,) = shared_memory(Path("/none/at/all"))
    assert found.state == "warning"
    assert "No such file" in found.seen
    assert "mount a tmpfs" in found.remedy
