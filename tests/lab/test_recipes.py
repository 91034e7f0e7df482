"""Every recipe, run in the lab beside intxtrace, and imported: the same interrupts, at the same instants."""

from __future__ import annotations

import pytest

from tests.lab import recipes
from tests.lab.compare import Row, show
from tests.lab.scenario import ScenarioResult, run_scenario
from tests.lab.truth import Truth

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3000)]

Compared = list[tuple[Truth, list[Row], list[str]]]


@pytest.fixture(scope="module", params=recipes.PLAYS, ids=" ".join)
def tools(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return tuple(request.param)


@pytest.fixture(scope="module")
def lab(tools: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> ScenarioResult:
    folder = tmp_path_factory.mktemp("recipes")
    return run_scenario(recipes.scenario(recipes.GUESTS, tools), folder, "6.1", timeout=2400)


@pytest.fixture(scope="module")
def compared(lab: ScenarioResult, tools: tuple[str, ...]) -> Compared:
    return list(recipes.compare_all(lab.folders[0].parent, lab.truths, lab.folders, tools))


@pytest.mark.parametrize("number", range(len(recipes.GUESTS)), ids=recipes.GUESTS)
def test_recipes_see_what_intxtrace_sees(compared: Compared, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    truth, rows, remarks = compared[number]
    with capsys.disabled():
        print("\n" + "\n".join([show(f"{truth.name}, recorded by recipes", rows), *remarks]))
    assert truth.host_interrupts > 0
    assert [row for row in rows if not row.holds] == []


def test_a_recipe_leaves_nothing_behind_and_says_what_it_lacks(lab: ScenarioResult, tools: tuple[str, ...]) -> None:
    for tool in tools:
        folder = lab.folders[0].parent / tool
        assert (folder / "left").read_text() == ""
        said = (folder / "stderr").read_text()
        (lacking,) = [line for line in said.splitlines() if "not on this kernel" in line]
        assert lacking.endswith("not on this kernel: kvm_notify_irqfd_resampler")  # which came with 6.4
        assert "missed" not in said
