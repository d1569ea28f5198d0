"""tools/gpu_check.py: what it does with wheels, time limits and results; no GPU is needed."""

import importlib.util
import sys
import zipfile
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[3] / "tools" / "gpu_check.py"
MINOR = sys.version_info.minor


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("gpu_check", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("wheel", "fits"),
    [
        (f"a-1-cp3{MINOR}-cp3{MINOR}-manylinux_2_28_x86_64.whl", True),
        (f"a-1-cp3{MINOR - 1}-abi3-manylinux_2_28_x86_64.whl", True),
        (f"a-1-cp3{MINOR}-abi3-linux_x86_64.whl", True),
        ("a-1-py3-none-any.whl", True),
        ("a-1-1_build-py2.py3-none-any.whl", True),
        (f"a-1-cp3{MINOR + 1}-abi3-linux_x86_64.whl", False),
        (f"a-1-cp3{MINOR + 1}-cp3{MINOR + 1}-linux_x86_64.whl", False),
        (f"a-1-cp3{MINOR - 1}-cp3{MINOR - 1}-linux_x86_64.whl", False),
        ("a-1-py2-none-any.whl", False),
    ],
)
def test_whether_a_wheel_is_for_this_python(tool, wheel, fits):
    assert tool.is_for_this_python(wheel) is fits


def test_wheels_for_another_python_are_refused_with_the_command_that_helps(tool, tmp_path):
    with pytest.raises(SystemExit, match=f"missing; run make gpu-check-wheels .*=python3.{MINOR}"):
        tool.unpacked(tmp_path, tmp_path / "site")
    name = f"a-1-cp3{MINOR + 1}-abi3-linux_x86_64.whl"
    (tmp_path / name).touch()
    with pytest.raises(SystemExit, match=f"for another Python than 3.{MINOR}: {name}"):
        tool.unpacked(tmp_path, tmp_path / "site")


def test_wheels_are_unpacked_side_by_side(tool, tmp_path):
    for name in ("a", "b"):
        with zipfile.ZipFile(tmp_path / f"{name}-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", "")
    site = tool.unpacked(tmp_path, tmp_path / "site")
    assert sorted(each.name for each in site.iterdir()) == ["a.py", "b.py"]


@pytest.mark.slow
def test_what_takes_too_long_is_interrupted_and_may_write_its_report(tool, tmp_path):
    program = (
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # it may be ignored outside
        "try: time.sleep(600)\n"
        "except KeyboardInterrupt: open('report', 'w').write('written')\n"
    )
    assert tool.run(["-SEc", program], tmp_path, {}, 1) == 124
    assert (tmp_path / "report").read_text() == "written"


def test_a_summary_names_what_failed(tool, tmp_path):
    figures = [
        {"case": "fast", "value": 2.0, "unit": "GB/s", "goal": 1.0, "met": True},
        {"case": "slow", "value": 2.0, "unit": "GB/s", "goal": 3.0, "met": False},
        {"case": "plain", "value": 2.0, "unit": "GB/s", "goal": None, "met": None},
        {"case": "absent", "left_out": "no torch"},
    ]
    result = {
        "tests": {"passed": 3, "failed": ["a::b"], "skipped": {"why": 2}, "status": 124},
        "figures": figures,
        "figures_status": 0,
        "wrong_bytes": ["push"],
        "seconds": 12.3,
    }
    assert tool.summary(result, tmp_path / "x.json").splitlines() == [
        "tests: 3 passed, 1 failed, 2 left out, interrupted as the time was over",
        "figures: 1 of 2 goals met; missed: slow; left out: absent",
        "wrong bytes: push",
        f"written: {tmp_path / 'x.json'}, 12 s",
    ]


def test_a_report_of_tests_is_counted(tool, tmp_path):
    report = tmp_path / "tests.xml"
    assert tool.outcomes(report) == {"problem": "the tests have written no report"}
    report.write_text(
        "<testsuites><testsuite>"
        '<testcase classname="a" name="passes"/>'
        '<testcase classname="a" name="fails"><failure/></testcase>'
        '<testcase classname="a" name="breaks"><error/></testcase>'
        '<testcase classname="a" name="is_skipped"><skipped message="no GPU"/></testcase>'
        "</testsuite></testsuites>"
    )
    counted = {"passed": 1, "failed": ["a::fails", "a::breaks"], "skipped": {"no GPU": 1}}
    assert tool.outcomes(report) == counted
