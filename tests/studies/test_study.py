import pytest

from netprism.cli.main import experiments
from netprism.studies.claims import SIGNS
from netprism.studies.study import find_study, listing, read_study, shipped

MINE = """\
# How fast may it learn?
experiment: quickstart
grid: {model.optimizer.init_args.lr: [0.001, 0.01]}
seeds: 3
read: {accuracy: val/accuracy}
"""


def test_a_file_of_five_lines_is_a_study(tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE)
    study = find_study(str(tmp_path / "mine.yaml"))
    assert (study.name, study.title, len(study.settings())) == ("mine", "How fast may it learn?", 6)
    assert study.grouped() == ["model.optimizer.init_args.lr"]


def test_a_study_extends_another(tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE)
    (tmp_path / "more.yaml").write_text("# More\nextends: mine.yaml\nseeds: 5\n")
    assert len(read_study(tmp_path / "more.yaml", "more").settings()) == 10
    (tmp_path / "shipped.yaml").write_text("# Mine\nextends: knowledge/points\nruns: [{label: VGG-16}]\nseeds: 2\n")
    assert len(read_study(tmp_path / "shipped.yaml", "shipped").settings()) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("read:", "reed:"), "key is 'reed'; expected one of"),
        (("read: {accuracy: val/accuracy}", ""), "read is empty; expected quantities"),
        (("experiment: quickstart", ""), "a run has no experiment"),
        (("grid: {", "grid: {{"), "is no study file"),
        (("{accuracy: val/accuracy}", "[accuracy]"), "read is ['accuracy']; expected a dict"),
        (("3", "none"), "seeds"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, change, says):
    file = tmp_path / "mine.yaml"
    file.write_text(MINE.replace(*change))
    with pytest.raises(ValueError, match=".") as error:
        read_study(file, "mine")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_study_names_those_that_are_close():
    some = next(iter(shipped()))
    with pytest.raises(FileNotFoundError, match=some):
        find_study(some[:-1])


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_study_says_what_it_shows_and_what_the_paper_found(name):
    study = find_study(name)
    assert 20 < len(study.title) < 100
    assert study.paper
    if study.waits_for:
        return
    assert study.asks
    assert study.found
    assert "not measured" not in study.time
    assert study.figure or study.draw
    assert {setting.get("experiment", study.experiment) for setting in study.settings()} <= {*experiments(), None}
    for claim in study.claims:
        assert sum(kind in claim for kind in SIGNS) == 1
    if study.claims:
        assert len({setting["seed"] for setting in study.settings()}) >= 3


def test_the_list_has_every_study():
    said = listing()
    assert all(f"  {name}  " in said for name in shipped())
