"""Pages say what the sources have."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
STARTS = re.compile(r"(?:Thread|Workers|ThreadPoolExecutor|ControlLoop|_RelayThread)\(")
NAME = re.compile(r'"((?:llm[-_]datadist-|demo-|doctor-|peer-|reader-)[^"]+)"')
THREADS = (ROOT / "docs" / "design" / "threads.md").read_text()


def test_every_thread_with_a_name_is_on_the_page_of_threads():
    names = set()
    for path in (ROOT / "src").rglob("*.py"):
        source = path.read_text()
        if STARTS.search(source):
            names |= set(NAME.findall(source))
    for path in (ROOT / "native").rglob("*.cc"):
        names |= set(re.findall(r'pthread_setname_np\([^"]*"([^"]+)"', path.read_text()))
    shown = re.findall(r"`([^`]+)`", THREADS)
    patterns = [re.sub(r"{[^}]+}", "[A-Z]+", name) for name in names]
    assert len(names) > 12
    assert [name for name in patterns if not any(re.fullmatch(name, each) for each in shown)] == []
