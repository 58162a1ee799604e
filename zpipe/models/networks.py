"""From a recipe to a network."""

from __future__ import annotations

from zpipe.models.gpt2 import gpt2
from zpipe.models.mobilenetv2 import mobilenetv2
from zpipe.models.network import MultiExitNet
from zpipe.models.recipes import Gpt2, MobileNetV2, Recipe, ResNet
from zpipe.models.resnet import resnet


def build_network(recipe: Recipe, *, classes: int) -> MultiExitNet:
    """A network with fresh weights from torch's global generator; GPT-2's classes are its vocabulary."""
    match recipe.network:
        case MobileNetV2():
            return mobilenetv2(recipe.network, recipe.split, size=recipe.image_size, classes=classes)
        case ResNet():
            return resnet(recipe.network, recipe.split, size=recipe.image_size, classes=classes)
        case Gpt2():
            return gpt2(recipe.network, recipe.split)
