"""Plots: two methods with the same values are both seen, on either kind of axis; no method is drawn as another."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from experiments.plots import STYLES, draw_lines, figure, style_of

PINK, BROWN = (227, 119, 194), (140, 86, 75)


def pixels_of(path: Path, colour: tuple[int, int, int]) -> int:
    with Image.open(path) as drawn:
        pixels = torch.frombuffer(bytearray(drawn.convert("RGB").tobytes()), dtype=torch.uint8).view(-1, 3).int()
    return int(((pixels - torch.tensor(colour)).abs().sum(dim=1) < 20).sum())


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_lines_that_lie_on_each_other_are_both_seen(scale, tmp_path):
    # As RelatIF and EK-FAC do in the brittleness of Fashion-MNIST.
    def drawn(name: str, *methods: str) -> Path:
        rows = [
            {"method": method, "removed": size, "flipped": share, "flipped_standard_error": 0.1}
            for method in methods
            for size, share in ((50, 0.16), (100, 0.24), (200, 0.48), (400, 0.68))
        ]
        with figure(tmp_path / name, 1) as (axis,):
            draw_lines(axis, rows, x="removed", y="flipped", legend=False)
            axis.set_xscale(scale)
        return tmp_path / name

    alone, both = drawn("alone.png", "relatif"), drawn("both.png", "relatif", "ekfac")
    assert pixels_of(both, PINK) > 100
    assert pixels_of(both, BROWN) > pixels_of(alone, BROWN) / 3


def test_no_two_methods_look_alike():
    of_one_plot = {name: style[1:] for name, style in STYLES.items() if name != "infogain_margin"}
    assert len(set(of_one_plot.values())) == len(of_one_plot)


def test_a_method_at_a_noise_of_its_own_is_named_with_it():
    assert style_of("infogain@100").title == "InfoGain, noise 100"
    assert style_of("infogain@100").line != style_of("infogain").line
    assert style_of("other@1").title == "other@1"
