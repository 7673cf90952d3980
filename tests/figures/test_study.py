import math

import pytest

from netprism.figures.study import study_figure

PAIRS = [
    {"weight": weight, "seed": seed, "first": "H", "second": second, "levels": value + 0.1 * seed}
    for weight in (0.0, 1.0)
    for second, value in (("SID", 0.8), ("points", -0.5))
    for seed in (0, 2)
]


def test_a_matrix_has_mean_and_spread_of_the_seeds_in_its_cells():
    spec = {"matrix": "levels", "x": "first", "y": "second", "where": {"weight": 0.0}, "title": "no loss"}
    (axes,) = study_figure(PAIRS, [spec], str).axes
    assert axes.images[0].get_array().ravel().tolist() == pytest.approx([0.9, -0.4])
    assert [text.get_text() for text in axes.texts] == ["0.90\n± 0.14", "-0.40\n± 0.14"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["SID", "points"]
    with pytest.raises(ValueError, match="matrix of a panel is 'steps'; expected one of first, levels"):
        study_figure(PAIRS, [{**spec, "matrix": "steps"}], str)


def test_a_panel_has_a_line_per_group_with_the_spread_of_the_seeds():
    rows = [{"epoch": e, "by": by, "seed": s, "H": e + s} for e in (0, 1) for by in "ab" for s in (0, 2)]
    rows.append({"epoch": 1, "by": "b", "seed": 3, "H": math.nan})
    (axes,) = study_figure(rows, [{"x": "epoch", "y": "H", "by": "by"}], {"H": "H, bits"}.get).axes
    assert [line.lines[0].get_ydata().tolist() for line in axes.containers] == [[1, 2], [1, 2]]
    assert axes.get_ylabel() == "H, bits"


def test_a_group_has_one_colour_in_all_panels_and_many_groups_have_their_legend_above():
    rows = [{"net": f"net {i}", "layer": layer, "SID": i, "seed": 0} for i in range(4) for layer in ("a", "b")]
    spec = {"x": "layer", "y": "SID", "by": "net"}
    first, second = study_figure(rows, [spec, {**spec, "where": {"net": ["net 1", "net 3"]}}], str).axes
    colours = [{text.get_text(): line.lines[0].get_color() for line, text in zip(axes.containers,
               axes.get_legend().get_texts(), strict=True)} for axes in (first, second)]  # fmt: skip
    assert colours[1] == {net: colours[0][net] for net in ("net 1", "net 3")}
    first.figure.draw_without_rendering()
    boxes = [(axes.get_legend().get_window_extent().y0, axes.get_window_extent().y1) for axes in (first, second)]
    assert boxes[0][0] >= boxes[0][1]
    assert boxes[1][0] < boxes[1][1]
