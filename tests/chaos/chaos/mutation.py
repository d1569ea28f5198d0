"""The form of a mutation: text of the sources that is replaced, and what must notice it."""

import shlex
from typing import NamedTuple


class Edit(NamedTuple):
    """Replaces a text, which must occur exactly once in the file, by another."""

    path: str
    old: str
    new: str


class Mutation(NamedTuple):
    """One bug that somebody may make.

    Attributes:
        name: For the command line.
        lost: The guarantee that does not hold any more.
        path, old, new: The edit.
        tests: Arguments of pytest, as in a shell: the tests that must fail.
        program: Native test program that must fail instead.
        chaos: Options of a chaos run that must fail instead.
        more: Further edits.
    """

    name: str
    lost: str
    path: str
    old: str
    new: str
    tests: str = ""
    program: str = ""
    chaos: dict | None = None
    more: tuple[Edit, ...] = ()

    @property
    def edits(self):
        """All edits."""
        return (Edit(self.path, self.old, self.new), *self.more)

    @property
    def is_native(self):
        """Whether the native core must be built."""
        return any(edit.path.startswith("native/") for edit in self.edits)

    @property
    def judge(self):
        """What must fail, in words."""
        return "chaos" if self.chaos is not None else self.program or self.tests

    @property
    def test_arguments(self):
        """Arguments of pytest."""
        return shlex.split(self.tests)


def mutated(mutation, read):
    """Return the files of a mutation with its edits: path -> text.

    Args:
        mutation: The mutation.
        read: Returns the text of a path.

    Raises:
        ValueError: An edit does not apply: its text is missing, or occurs more than once.
    """
    texts = {}
    for edit in mutation.edits:
        text = texts.get(edit.path) or read(edit.path)
        if text.count(edit.old) != 1:
            raise ValueError(
                f"mutation {mutation.name}: {edit.old!r} occurs {text.count(edit.old)} times in "
                f"{edit.path}; bring tests/chaos/chaos/mutations up to date"
            )
        texts[edit.path] = text.replace(edit.old, edit.new)
    return texts
