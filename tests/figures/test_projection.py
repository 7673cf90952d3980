import json
import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from netprism.figures import projection as figures


def scatter(title="epoch 0", strength=2.0):
    g = strength * torch.tensor([[1.0, 0, 0], [0.5, 0, 0], [0, 0.25, 0]])
    return figures.Scatter(g, torch.tensor([0, 0, 1]), torch.eye(3)[:2], title, names=["cat", "dog"])


def test_both_views_show_every_feature_and_every_direction():
    left, right = figures.figure(scatter()).axes
    strong = torch.tensor([list(left.collections[0]._offsets3d[0])])
    assert strong.tolist() == [[2.0, 1.0]]
    assert list(right.collections[0]._offsets3d[0]) == [1.0, 1.0]  # on the sphere
    assert list(right.collections[2]._offsets3d[1]) == [1.0]
    assert [text.get_text() for text in left.figure.legends[0].texts] == ["cat", "dog"]
    assert left.get_title() == "by strength"


def test_a_picture_and_a_page_are_written(tmp_path):
    paths = figures.draw(scatter(), tmp_path / "new" / "projection_layer1.0")
    assert [path.name for path in paths] == ["projection_layer1.0.png", "projection_layer1.0.html"]
    with Image.open(paths[0]) as picture:
        assert picture.size[0] > 500
    html = paths[1].read_text()
    assert '"x":[2.0,1.0]' in html
    assert "plotly.min.js" in html
    assert (tmp_path / "new" / "plotly.min.js").is_file()


def test_a_page_of_several_has_a_slider(tmp_path):
    html = figures.page([scatter("epoch 0"), scatter("epoch 1", strength=4.0)], tmp_path / "film.html").read_text()
    steps = [json.loads(f'"{name}"') for name in re.findall(r'"label":"(.*?)"', html)]
    assert steps == ["epoch 0", "epoch 1"]
    assert '"x":[4.0,2.0]' in html


def test_a_film_has_a_picture_a_scatter_and_one_scale(tmp_path):
    path = figures.film([scatter("a", 1.0), scatter("b", 2.0), scatter("c", 3.0)], tmp_path / "film.gif")
    with Image.open(path) as film:
        assert film.n_frames == 3
    assert figures.figure(scatter(strength=1.0), reach=5.0).axes[0].get_xlim() == (-5, 5)


def test_features_without_strength_and_empty_categories_are_drawn(tmp_path):
    nothing = figures.Scatter(torch.zeros(2, 3), torch.tensor([1, 1]), torch.eye(3))
    assert all(path.stat().st_size > 0 for path in figures.draw(nothing, tmp_path / "nothing"))


def test_bad_input_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"shapes of g, categories and directions are \(\(2, 2\), \(2,\), \(3, 3\)\); expected"
    ):
        figures.Scatter(torch.zeros(2, 2), torch.zeros(2), torch.eye(3))
    for write in (figures.film, figures.page):
        with pytest.raises(ValueError, match="scatters is empty"):
            write([], tmp_path / "film.gif")


def test_classes_have_the_names_that_the_data_give_them():
    photos = SimpleNamespace(classes=("brick", "cat", "coins"))
    assert figures.class_names([0, 2], photos) == ["brick", "coins"]
    assert figures.class_names([1], object(), SimpleNamespace(datamodule=photos)) == ["cat"]
    assert figures.class_names([1], SimpleNamespace(dataset=photos)) == ["cat"]
    assert figures.class_names([1, 3], photos, SimpleNamespace(classes=())) == ["1", "3"]  # of other data
    assert figures.class_names([4], None) == ["4"]
