"""The figures of one run."""

from __future__ import annotations

import json


class Report:
    """Collects figures; one that cannot be had has a reason instead of a value."""

    def __init__(self, facts):
        self.facts = facts
        self.figures = []
        self.wrong = []
        self.paths = {}

    def add(self, case, value, unit, goal=None):
        """Add a figure. A goal in GB/s is a least value, any other a greatest."""
        met = None if goal is None else bool(value >= goal if unit == "GB/s" else value <= goal)
        figure = {"case": case, "value": value, "unit": unit, "goal": goal, "met": met}
        self.figures.append(figure)
        print(row(figure), flush=True)

    def leave_out(self, case, reason):
        figure = {"case": case, "left_out": reason}
        self.figures.append(figure)
        print(row(figure), flush=True)

    def note_path(self, case, link):
        """Note which way a link moves a GPU's memory, from what describe_link says."""
        why = link.get("why_device")
        self.paths[case] = link["backend"]["device"] + (f": {why}" if why else "")

    def check(self, case, right):
        if not right:
            self.wrong.append(case)

    def beside_nixl(self):
        """Add the ratio of the library's pull to NIXL's, if there are both."""
        found = {each["case"]: each.get("value") for each in self.figures}
        mine, nixl = found.get("pull 32 KiB blocks"), found.get("NIXL reads 32 KiB blocks")
        if mine and nixl:
            met = mine >= 100 * nixl
            figure = {"case": "pull beside NIXL's", "value": mine / nixl, "unit": "x", "goal": 100,
                      "met": met}  # fmt: skip
            self.figures.append(figure)
            print(row(figure), flush=True)

    def write(self, path):
        text = {"facts": self.facts, "figures": self.figures, "wrong_bytes": self.wrong}
        text["paths"] = self.paths
        path.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")


def row(figure):
    """Return a line of the table for one figure."""
    if "left_out" in figure:
        return f"| {figure['case']} | left out: {figure['left_out']} | |"
    goal = "" if figure["goal"] is None else f"{figure['goal']:.4g}"
    met = {None: "", True: ": met", False: ": missed"}[figure["met"]]
    return f"| {figure['case']} | {figure['value']:.4g} {figure['unit']} | {goal}{met} |"
