import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from netprism.interventions import insert_layer, replace_layer


def test_a_layer_of_torchvision_is_replaced_and_the_rest_stays():
    model = resnet18().eval()
    before = model.layer1
    assert replace_layer(model, "layer1", nn.Identity()) is before
    x = torch.randn(1, 3, 64, 64)
    expected = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    assert torch.equal(model.layer1(expected), expected)
    assert model(x).shape == (1, 1000)


def test_a_function_gets_the_layer():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    replace_layer(model, "1", lambda old: nn.Linear(old.in_features, 7))
    assert model(torch.ones(1, 3)).shape == (1, 7)


def test_a_layer_is_put_behind_another():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())
    x = torch.randn(2, 1, 8, 8)
    expected = nn.functional.max_pool2d(model[0](x), 2).relu()
    insert_layer(model, "0", nn.MaxPool2d(2))
    assert torch.equal(model(x), expected)


def test_bad_input_ends_in_one_line():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu)
    with pytest.raises(ValueError, match="has no layer 'fc'"):
        replace_layer(model, "fc", nn.ReLU())
    with pytest.raises(ValueError, match=r"is in 2 places \(1, 3\); expected one"):
        replace_layer(model, "1", nn.ReLU())
