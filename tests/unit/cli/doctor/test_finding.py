"""A finding has a remedy if it is no good, and only then."""

import pytest

from llm_datadist.cli.doctor.finding import State, ok, problem, split_remedy, warning


def test_what_is_not_ok_has_a_remedy():
    assert ok("a", "b").state is State.OK
    assert warning("a", "b", "c").remedy == "c"
    for make in (warning, problem):
        with pytest.raises(ValueError, match="a: "):
            make("a", "b", "")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x; y", ("x", "y")),
        ("w; x; y", ("w; x", "y")),
        ("x", ("x", "else")),
    ],
)
def test_an_error_text_has_its_remedy_at_the_end(text, parts):
    assert split_remedy(text, "else") == parts
